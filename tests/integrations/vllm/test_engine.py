"""vLLM with a packed checkpoint says what transformers says with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nestquant_cli.checkpoint.manifest import describe_tensors, read_manifest, write_manifest
from nestquant_cli.integrations.vllm.state import RESIDENT
from tests.integrations.vllm.serving import Compared, compare, needs_vllm, quantized, run_engine

pytestmark = needs_vllm

NUMBERED = Path(__file__).with_name("numbered.py")
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
    ("family", "settings", "environment"),
    [
        ("llama", W4, {}),
        ("llama", MIXED, {RESIDENT: "packed"}),
        ("llama", GROUPS, {}),
        ("phi3", W4, {}),  # q, k and v, gate and up are one matrix each in the checkpoint
    ],
    ids=["w4", "mixed-packed", "groups", "phi3"],
)
def test_weights(
    family: str, settings: dict[str, Any], environment: dict[str, str], checkpoint: Callable[..., Path]
) -> None:
    same(compare(checkpoint(family, **settings), environment))


def same(compared: Compared) -> None:
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


def other_weights(folder: Path) -> None:
    """Turns the rows of all words around, so that only the files with tensors are those of another checkpoint."""
    shards = list(folder.glob("*.safetensors"))
    for path in shards:
        tensors = {
            name: tensor.flip(0) if name.endswith(".words") else tensor for name, tensor in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    names = list(read_manifest(folder)["files"])
    write_manifest(folder, names, describe_tensors(folder, [path.name for path in shards]))


def test_a_compiled_graph_is_used_again(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """vLLM keeps graphs on disk, which hold nothing of the checkpoint, of the form in memory or of the process.

    Some builds of vLLM cannot load them and compile again, which a line of their log says.
    """
    folder, place = checkpoint("qwen2", **W4), {"VLLM_CACHE_ROOT": str(tmp_path)}  # the head is the embeddings
    first = compare(folder, place | {RESIDENT: "packed"}, enforce_eager=False)
    other_weights(folder)
    second = compare(folder, place | {RESIDENT: "int8"}, NUMBERED, enforce_eager=False)
    same(first)
    same(second)
    found = ("Directly load AOT compilation", "Compiling model again due to a load failure")  # the graph, by its key
    assert [any(text in compared.log for text in found) for compared in (first, second)] == [False, True]


@pytest.mark.parametrize(
    "settings", [W4 | {"act_bits": 4}, W4 | {"act_bits": 8}, LEARNED], ids=["w4a4", "w4a8", "w4a8-learned"]
)
def test_activations(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    """Rounding goes the other way for few tokens, where the last bits of the input differ; most differ by nothing."""
    compared = compare(checkpoint("llama", **settings))
    assert compared.differences.median() < 1e-3
    assert compared.differences.mean() < 0.1


@pytest.mark.parametrize("settings", [W4 | {"tensor_parallel": 2}, LATTICE], ids=["parts", "exchanged-lattice"])
def test_two_processes(settings: dict[str, Any], checkpoint: Callable[..., Path]) -> None:
    same(compare(checkpoint("llama", **settings), tensor_parallel_size=2))


@pytest.mark.parametrize(
    ("settings", "most"), [(W4, 0.05), (W4 | {"act_bits": 4, "kv_bits": 4}, 0.3)], ids=["w4", "w4a4kv4"]
)
def test_bfloat16(settings: dict[str, Any], most: float, checkpoint: Callable[..., Path]) -> None:
    """Transformers with two kinds of attention differs by 0.27 on average at W4A4KV4, as roundings turn."""
    compared = compare(checkpoint("llama", **settings), dtype="bfloat16")
    assert compared.differences.mean() < most


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
