"""A model in words: of a GGUF file with the type of its weights, from the header alone."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from nestquant_cli.models.describe import describe
from nestquant_cli.models.gguf_type import gguf_type
from nestquant_cli.models.hub import Commit
from nestquant_cli.models.resolve import Source, resolve


def write(path: Path, declared: gguf.LlamaFileType | None, **tensors: tuple[int, gguf.GGMLQuantizationType]) -> Path:
    """A GGUF file with a vocabulary, as real ones have it, and tensors of so many rows of 32 entries."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("some model")
    writer.add_token_list([f"token {number}" for number in range(50)])
    writer.add_token_scores([0.5] * 50)
    writer.add_array("general.tags", ["a", "b"])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    if declared is not None:
        writer.add_file_type(declared)
    for name, (rows, kind) in tensors.items():
        writer.add_tensor(name, gguf.quantize(np.ones((rows, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Q8, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("name", "declared", "words"),
    [
        ("tiny.Q4_1.gguf", gguf.LlamaFileType.MOSTLY_Q4_1, "tiny, Q4_1 GGUF, de-quantized to bfloat16"),
        ("tiny-q4_k_m.gguf", gguf.LlamaFileType.MOSTLY_Q4_K_M, "tiny, Q4_K_M GGUF, de-quantized to bfloat16"),
        ("tiny.gguf", gguf.LlamaFileType.ALL_F32, "tiny, F32 GGUF, read in bfloat16"),
        ("tiny.gguf", None, "tiny, Q8_0 GGUF, de-quantized to bfloat16"),
    ],
)
def test_a_gguf_file_is_named_with_its_type(
    name: str, declared: gguf.LlamaFileType | None, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, declared, small=(1, F32), large=(9, Q8), also=(2, F32))
    assert describe(resolve(str(path))) == words
    assert describe(resolve(str(path)), "float32") == words.replace("bfloat16", "float32")


def test_a_header_that_breaks_off_anywhere_is_no_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", None, large=(2, Q8)).read_bytes()
    for length in range(0, 1500, 7):
        path = tmp_path / f"cut-{length}.gguf"
        path.write_bytes(whole[:length])
        assert gguf_type(path) in (None, "Q8_0")
        if length < 1000:
            assert gguf_type(path) is None
    (tmp_path / "long.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    assert describe(Source("gguf", str(tmp_path), "long.gguf", "long")) == "long, GGUF, read in bfloat16"


def test_a_commit_and_a_folder(tmp_path: Path) -> None:
    commit = Commit("org/tiny", None, "0123456789abcdef", ())
    assert describe(Source("folder", str(tmp_path), None, "org/tiny", commit)) == "org/tiny at commit 0123456789ab"
    assert describe(Source("folder", str(tmp_path), None, "tiny")) == "tiny"
