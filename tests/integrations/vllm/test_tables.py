"""vLLM with a coded embedding and head says what transformers says with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.integrations.vllm.state import RESIDENT
from tests.integrations.vllm.serving import compare, needs_vllm, quantized, run_engine

pytestmark = needs_vllm

W4: dict[str, Any] = {"weight_bits": 4, "act_bits": 16, "kv_bits": 16, "feedback": "none"}
BYTES = W4 | {"embedding_bits": 8, "head_bits": 8}


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
        ("qwen2", BYTES, {}, {}),  # the head is the embedding
        ("qwen2", BYTES | {"embedding_bits": 5, "head_bits": 5}, {RESIDENT: "packed"}, {"enforce_eager": False}),
        ("llama", BYTES, {RESIDENT: "packed"}, {}),  # vLLM gives the embedding no name
        ("llama", BYTES, {}, {"tensor_parallel_size": 2}),  # each process has half of the rows
    ],
    ids=["tied", "tied-nested-compiled", "untied-packed", "two-processes"],
)
def test_tables(
    family: str,
    settings: dict[str, Any],
    environment: dict[str, str],
    engine: dict[str, Any],
    checkpoint: Callable[..., Path],
) -> None:
    compared = compare(checkpoint(family, **settings), environment, **engine)
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


def test_a_class_that_does_not_let_its_embedding_be_coded_is_refused(checkpoint: Callable[..., Path]) -> None:
    done = run_engine(checkpoint("opt", **BYTES), {})
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "NestQuantError" in line]
    assert "no layer for 1 coded matrices, such as model.decoder.embed_tokens" in lines[-1]
