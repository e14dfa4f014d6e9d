"""Texts are read as they are, windows follow the protocol, and what cannot be read is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestquant_cli.calibration.demo_text import demo_documents
from nestquant_cli.calibration.text import Text, hash_tokens, load_text, sample_windows, token_windows, tokenize
from nestquant_cli.errors import NestQuantError


@pytest.fixture
def tokenizer(tiny_tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_folder)


@pytest.fixture
def text(tiny_text_file: Path) -> Text:
    return load_text(str(tiny_text_file), "test")


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
    monkeypatch.setattr("nestquant_cli.models.hub.reachable", lambda: False)
    with pytest.raises(NestQuantError, match=r"local \.txt or \.jsonl"):
        load_text(name, "test")


def test_windows_do_not_overlap_and_the_tail_is_dropped(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    stream = tokenize(text, tokenizer)
    windows = token_windows(text, tokenizer, 64, "default")
    assert windows.dtype == torch.int64 and windows.shape == (len(stream) // 64, 64)
    assert torch.equal(windows.flatten(), stream[: windows.numel()])


def test_bos_goes_where_it_is_asked_for(text: Text, tiny_tokenizer_folder: Path) -> None:
    path = tiny_tokenizer_folder / "tokenizer.json"
    state = json.loads(path.read_text())
    template = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": list(template),
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    adding = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>")
    stream = tokenize(text, adding, "none")
    once = token_windows(text, adding, 64, "default")
    each = token_windows(text, adding, 64, "each")
    none = token_windows(text, adding, 64, "none")
    assert once[0, 0] == 0 and torch.equal(once.flatten()[1:], stream[: once.numel() - 1])
    assert (each[:, 0] == 0).all() and torch.equal(each[:, 1:].flatten(), stream[: len(each) * 63])
    assert torch.equal(none.flatten(), stream[: none.numel()])


def test_each_needs_a_bos_token(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.bos_token = None
    with pytest.raises(NestQuantError, match="no BOS token"):
        token_windows(text, tokenizer, 64, "each")


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.txt").write_text("a short text")
    text = load_text(str(tmp_path / "a.txt"), "test")
    for windows in (
        lambda: token_windows(text, tokenizer, 64, "default"),
        lambda: sample_windows(text, tokenizer, 64, 1, 0),
    ):
        with pytest.raises(NestQuantError, match=r"has \d+ tokens, fewer than one window of 64"):
            windows()


def test_long_texts_are_tokenized_without_a_warning(
    text: Text, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(tokenize(text, tokenizer)) > tokenizer.model_max_length
    assert "longer than" not in capfd.readouterr().err


def test_samples_are_windows_of_the_stream_chosen_by_the_seed(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    first = sample_windows(text, tokenizer, 32, 5, seed=0)
    again = sample_windows(text, tokenizer, 32, 5, seed=0)
    other = sample_windows(text, tokenizer, 32, 5, seed=1)
    assert first.ids.shape == (5, 32) and first.ids.dtype == torch.int64 and first.samples == 5
    assert torch.equal(first.ids, again.ids) and first.sha256 == again.sha256 == hash_tokens(first.ids)
    assert first.sha256 != other.sha256
    every_window = tokenize(text, tokenizer).unfold(0, 32, 1)
    assert all((every_window == window).all(dim=1).any() for window in first.ids)


def test_samples_are_capped_at_the_places_there_are(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.txt").write_text("The lattice holds every point")
    text = load_text(str(tmp_path / "a.txt"), "train")
    tokens = len(tokenize(text, tokenizer))
    windows = sample_windows(text, tokenizer, tokens - 2, 100, seed=0)
    assert windows.samples == len(windows.ids) == 3
    assert len({tuple(window.tolist()) for window in windows.ids}) == 3
