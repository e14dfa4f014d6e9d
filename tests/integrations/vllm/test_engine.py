"""vLLM with a packed checkpoint says what transformers says with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.integrations.vllm.state import RESIDENT
from tests.integrations.vllm.serving import compare, needs_vllm, quantized, run_engine

pytestmark = needs_vllm

W4: dict[str, Any] = {"weight_bits": 4, "act_bits": 16, "kv_bits": 16}
MIXED = W4 | {"weight_bits": 3.5, "allocation": "mixed"}
LATTICE = W4 | {"method": "glvq", "weight_bits": 2, "paths": 2}
GROUPS = (
    W4
    | {"method": "integer", "rotation": "none", "qa": False}
    | {"weight_code": {"symmetric": False, "group": 32, "clip": "mse"}}
)
LEARNED = W4 | {"method": "integer", "act_bits": 8, "rotation": "learned", "reflections": 4, "qa": False}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> Callable[..., Path]:
    """Quantizes a tiny random model of a family."""

    def make(family: str, **settings: Any) -> Path:
        place = tmp_path_factory.mktemp(family)
        return quantized(place, family, (2, 1, 32), tiny_tokenizer_folder, tiny_text_file, **settings)

    return make


@pytest.mark.parametrize(
    ("family", "settings", "environment", "engine"),
    [
        ("llama", W4, {}, {}),
        ("llama", W4, {RESIDENT: "packed"}, {"enforce_eager": False}),
        ("llama", MIXED, {}, {}),
        ("llama", MIXED, {RESIDENT: "packed"}, {}),
        ("llama", LATTICE, {}, {}),
        ("llama", GROUPS, {}, {}),
        ("phi3", W4, {}, {}),  # q, k and v, gate and up are one matrix each in the checkpoint
        ("qwen2", W4, {}, {"enforce_eager": False}),  # the head is the embeddings
    ],
    ids=["w4", "w4-packed-compiled", "mixed", "mixed-packed", "lattice", "groups", "phi3", "tied-compiled"],
)
def test_weights(
    family: str,
    settings: dict[str, Any],
    environment: dict[str, str],
    engine: dict[str, Any],
    checkpoint: Callable[..., Path],
) -> None:
    compared = compare(checkpoint(family, **settings), environment, **engine)
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


@pytest.mark.parametrize(
    "settings", [W4 | {"act_bits": 8}, W4 | {"act_bits": 4}, LEARNED], ids=["w4a8", "w4a4", "w4a8-learned"]
)
def test_activations(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    """Rounding goes the other way for few tokens, where the last bits of the input differ; most differ by nothing."""
    compared = compare(checkpoint("llama", **settings))
    assert compared.differences.median() < 1e-3
    assert compared.differences.mean() < 0.1


@pytest.mark.parametrize(
    "settings", [W4 | {"tensor_parallel": 2}, W4, LATTICE], ids=["parts", "exchanged", "exchanged-lattice"]
)
def test_two_processes(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    compared = compare(checkpoint("llama", **settings), tensor_parallel_size=2)
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


@pytest.mark.parametrize("settings", [W4, W4 | {"act_bits": 8}], ids=["w4", "w4a8"])
def test_bfloat16(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    compared = compare(checkpoint("llama", **settings), dtype="bfloat16")
    assert compared.differences.mean() < 0.05


def test_an_altered_checkpoint_is_refused_in_one_line(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama", **W4)
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = run_engine(folder, {})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("nestquant_cli.base.errors.NestQuantError: ")
    assert path.name in done.stderr.splitlines()[-1]
