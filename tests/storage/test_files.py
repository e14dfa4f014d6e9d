import codecs
import hashlib
import os
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.storage import files
from nestquant_cli.storage.settings_file import read_settings


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.json"
    files.write_json(path, {"β": [1, 2.5, None]})
    assert files.read_json(path) == {"β": [1, 2.5, None]}
    assert os.listdir(path.parent) == ["report.json"]


@pytest.mark.parametrize("failure", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)), files.replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise failure
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_bytes() == b"new"


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    message = r"weights\.bin cannot be written .*No space left.*--output"
    with pytest.raises(NestQuantError, match=message), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(NestQuantError, match="cannot be written"):
        files.write_text(tmp_path / "taken" / "report.json", "")


def test_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"perplexity": float("nan")})
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"{", "is not valid JSON"), (b"\xff", "is not valid JSON")]
)
def test_unreadable_json_is_reported_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NestQuantError, match=message):
        files.read_json(path)


def test_sha256_of_a_file_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASH_CHUNK", 1000)
    content = os.urandom(3456)
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(codecs.BOM_UTF8 + b"samples: 4\n")
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b"[4]")
    assert read_settings(tmp_path / "a.yaml") == {"samples": 4} and files.read_json(tmp_path / "a.json") == [4]
