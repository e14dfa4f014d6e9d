"""Texts are read as they are, and what cannot be read is refused."""

import hashlib
from pathlib import Path

import pytest

from nestquant_cli.calibration.demo_text import demo_documents
from nestquant_cli.calibration.text import load_text
from nestquant_cli.errors import NestQuantError


def test_a_text_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b" one\n\n\n two \r three \n")
    text = load_text(str(path), "train")
    assert text.text.encode() == path.read_bytes() and text.documents is None and text.split == "all"
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and text.line_ends == "LF"


def test_line_ends_of_another_system_make_no_other_text(tmp_path: Path) -> None:
    (tmp_path / "lf.txt").write_bytes(b"one\n\n two\n")
    (tmp_path / "crlf.txt").write_bytes(b"one\r\n\r\n two\r\n")
    lf, crlf = (load_text(str(tmp_path / name), "test") for name in ("lf.txt", "crlf.txt"))
    assert lf.text == crlf.text and lf.sha256 == crlf.sha256
    assert (lf.line_ends, crlf.line_ends) == ("LF", "CRLF, read as LF")


def test_jsonl_documents_are_joined_by_two_newlines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two\\u2028three", "id": 4}\n', encoding="utf-8")
    text = load_text(str(path), "test")
    assert text.documents == ["one", "two\u2028three"] and text.text == "one\n\ntwo\u2028three"


def test_the_two_parts_of_the_demo_share_no_paragraph() -> None:
    train, test = load_text("demo", "train"), load_text("demo", "test")
    assert train.text == load_text("demo", "train").text
    parts = [
        {" ".join(part.split()) for document in demo_documents(split) for part in document.split("\n\n")}
        for split in ("train", "test")
    ]
    assert not parts[0] & parts[1]
    assert len(train.text) > 150_000 and len(test.text) > 60_000  # 16 and 4 windows of 2048 tokens, with a margin


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"missing\.txt cannot be read \(No such file"),
        ("empty.txt", b"  \n", "holds no text"),
        ("latin.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("broken.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("field.jsonl", b'{"content": "a"}\n', "line 1 has no string in the field 'text'"),
        ("table.csv", b"a,b", "not a data set that is known here"),
    ],
)
def test_unreadable_data_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NestQuantError, match=message):
        load_text(str(tmp_path / name), "test")


def test_unknown_names_and_splits_are_refused() -> None:
    with pytest.raises(NestQuantError, match="'wikitext3' is not a data set"):
        load_text("wikitext3", "test")
    with pytest.raises(NestQuantError, match="no split 'tset'"):
        load_text("demo", "tset")


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_a_data_set_without_a_connection_names_the_alternative(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("nestquant_cli.models.hub.unreachable", lambda: "no network")
    with pytest.raises(NestQuantError, match=r"(no network).*local \.txt or \.jsonl"):
        load_text(name, "test")
