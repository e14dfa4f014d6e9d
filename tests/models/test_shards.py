import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.shard_writer import write_shard
from nestquant_cli.models.shards import DTYPES, bytes_of, read_shard, read_tensors

TENSORS = {"a.words": torch.arange(12, dtype=torch.uint8).view(3, 4), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_entries_say_where_the_data_is(path: Path) -> None:
    shard = read_shard(path)
    content = path.read_bytes()
    assert set(shard.entries) == set(TENSORS)
    for name, tensor in TENSORS.items():
        entry = shard.entries[name]
        assert (entry.dtype, entry.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        data = tensor.flatten().view(torch.uint8).numpy().tobytes()
        assert content[entry.start : entry.start + entry.bytes] == data
    assert shard.header_bytes + sum(entry.bytes for entry in shard.entries.values()) == len(content)
    assert shard.frame_bytes > 8


@pytest.mark.parametrize(
    ("header", "data", "told"),
    [
        ([], b"", "not an object"),
        (b"{", b"", "not JSON"),
        (b"\xff\xfe", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}', b"", "twice"),
        ({"a": 1}, b"", "no usable dtype"),
        ({"a": {"dtype": "U7", "shape": [1], "data_offsets": [0, 1]}}, b"x", "no usable dtype"),
        ({"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, b"x", "no usable dtype"),
        ({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"x", "no usable dtype"),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x", "no usable dtype"),
        ({"a": {"dtype": "U8", "shape": [1 << 70], "data_offsets": [0, 1]}}, b"x", "no usable dtype"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x", "disagree"),
        ({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1]}}, b"x", "disagree"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"xx", "do not follow"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"x", "truncated"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xx", "too long"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: object, data: bytes, told: str) -> None:
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(NestQuantError, match=told) as refused:
        read_shard(path)
    assert str(path) in refused.value.cause


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8 + b"{}", (1 << 40).to_bytes(8, "little")])
def test_a_header_length_beyond_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(NestQuantError, match="does not fit a file"):
        read_shard(tmp_path / "bad.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match="cannot be read"):
        read_shard(tmp_path / "none.safetensors")


def test_all_tensors_of_a_file_are_read_in_any_dtype_of_the_library(tmp_path: Path) -> None:
    kinds = [getattr(torch, name) for name, _ in DTYPES.values()]
    tensors = {str(kind): torch.arange(6).view(2, 3).to(kind) for kind in kinds if kind != torch.float8_e8m0fnu}
    save_file(tensors, tmp_path / "all.safetensors")
    found = read_tensors(tmp_path / "all.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and bytes_of(found[name]) == bytes_of(tensor), name


def test_a_written_file_is_what_the_library_reads(tmp_path: Path) -> None:
    write_shard(tmp_path / "own.safetensors", TENSORS)
    for name, tensor in load_file(tmp_path / "own.safetensors").items():
        assert torch.equal(tensor, TENSORS[name])
