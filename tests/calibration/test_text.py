"""Texts are read as they are, and what cannot be read is refused."""

import codecs
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.text import load_text


def test_a_text_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b" one\n\n\n two \r three \n")
    text = load_text(str(path), "train")
    assert text.text.encode() == path.read_bytes() and text.join == "" and text.split == "all"
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
    assert list(text.documents()) == ["one", "two\u2028three"] and text.text == "one\n\ntwo\u2028three"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"missing\.txt cannot be read \(No such file"),
        ("empty.txt", b"  \n", "holds no text"),
        ("latin.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("broken.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("field.jsonl", b'{"content": "a"}\n', "line 1 has no string in the field 'text'"),
        (
            "talk.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "line 1 is a conversation and the tokenizer",
        ),
        ("roles.jsonl", b'{"messages": [{"from": "user", "value": "a"}]}', "nor messages with role and content"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "half of a surrogate pair"),
        ("object.json", b'{"text": "a"}', "is not a JSON list"),
        ("broken.json", b'[{"text": "a"}', "is not JSON"),
        ("plain.txt.gz", b"not zipped", "damaged or not gzipped"),
        ("table.parquet", b"PAR0", "cannot be read as parquet"),
        ("missing.parquet", None, "cannot be read"),
        ("late.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n', r"not UTF-8 text \(byte 25\)"),
        ("table.csv", b"a,b", "not a data set that is known here"),
    ],
)
def test_unreadable_data_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NestQuantError, match=message):
        load_text(str(tmp_path / name), "test")


ROWS = [{"text": "one", "body": "eins"}, {"text": "two\n", "body": "zwei"}]


def write(path: Path) -> str:
    """ROWS in the form that the name says."""
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    if path.name.endswith(".parquet"):
        table.to_parquet(str(path))
    elif ".json" in path.name:
        data = json.dumps(ROWS).encode() if ".jsonl" not in path.name else lines
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    elif path.name == "splits":
        datasets.DatasetDict(train=table, other=table.select([0])).save_to_disk(str(path))
    else:
        table.save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "A.PARQUET".lower(), "folder", "splits"]
)
def test_records_of_every_form_are_the_same_text(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / name)
    text = load_text(source, "train")
    assert list(text.documents()) == ["one", "two\n"] and text.text == "one\n\ntwo\n"
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest() and text.characters == 9
    assert text.source["text_field"] == "text" and text.source["chat_template_sha256"] is None
    assert load_text(source, "train", field="body").text == "eins\n\nzwei"
    with pytest.raises(NestQuantError, match=r"no string in the field 'no'.*\(this one has text, body\)"):
        load_text(source, "train", field="no")


def test_saved_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match=r"has no split 'test'.*it has train, other"):
        load_text(write(tmp_path / "splits"), "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NestQuantError, match="is not a data set of save_to_disk"):
        load_text(str(tmp_path / "empty"), "test")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\n\ntwo"),
        ("a.txt.gz", gzip.compress(b"one\n\ntwo", mtime=0)),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}'),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]'),
    ],
)
def test_a_byte_order_mark_is_no_text(
    name: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    plain = load_text(str(tmp_path / name), "train")
    mark = codecs.BOM_UTF8
    marked = gzip.compress(mark + gzip.decompress(content)) if name.endswith(".gz") else mark + content
    (tmp_path / name).write_bytes(marked)
    with caplog.at_level("INFO", "nestquant"):
        text = load_text(str(tmp_path / name), "train")
    assert text.text == plain.text == "one\n\ntwo" and text.sha256 == plain.sha256
    assert (plain.byte_order_mark, text.byte_order_mark) == (False, True)
    assert any("begins with a byte order mark" in line for line in caplog.messages)


def test_pieces_of_a_file_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\ufeffä\r\n\r\n🙂\r x\r\n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    for size in range(1, len(content) + 1):
        monkeypatch.setattr("nestquant_cli.calibration.text_files.PIECE", size)
        text = load_text(str(tmp_path / "a.txt"), "train")
        assert text.text == "ä\n\n🙂\r x\n" and text.line_ends != "LF" and text.byte_order_mark
    (tmp_path / "a.txt").write_bytes(content + b"\xe4")
    for size in (1, 5, 100):
        monkeypatch.setattr("nestquant_cli.calibration.text_files.PIECE", size)
        with pytest.raises(NestQuantError, match=rf"byte {len(content)}\)"):
            load_text(str(tmp_path / "a.txt"), "train")


@pytest.mark.parametrize("name", ["a.txt", "demo"])
def test_a_field_of_what_has_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(NestQuantError, match="has no fields"):
        load_text(name if name == "demo" else str(tmp_path / name), "train", field="text")
