"""Windows follow the protocol, and a text that is too short for them is refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration import windows as windows_of
from nestquant_cli.calibration.text import Text, load_text
from nestquant_cli.calibration.token_stream import token_stream
from nestquant_cli.calibration.windows import hash_tokens, sample_windows, token_windows, tokenize


@pytest.fixture
def tokenizer(tiny_tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_folder)


@pytest.fixture
def text(tiny_text_file: Path) -> Text:
    return load_text(str(tiny_text_file), "test")


def test_windows_do_not_overlap_and_the_tail_is_dropped(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    stream = tokenize(text, tokenizer)[0]
    windows = token_windows(text, tokenizer, 64, "default")
    assert windows.dtype == torch.int64 and windows.shape == (len(stream) // 64, 64)
    assert torch.equal(windows.flatten(), stream[: windows.numel()])


def test_bos_goes_where_it_is_asked_for(text: Text, bos_tokenizer_folder: Path) -> None:
    adding = AutoTokenizer.from_pretrained(bos_tokenizer_folder)
    stream = tokenize(text, adding, "none")[0]
    assert torch.equal(tokenize(text, adding)[0], torch.tensor(adding(text.text)["input_ids"], dtype=torch.int32))
    once = token_windows(text, adding, 64, "default")
    each = token_windows(text, adding, 64, "each")
    none = token_windows(text, adding, 64, "none")
    assert once[0, 0] == 0 and torch.equal(once.flatten()[1:], stream[: once.numel() - 1])
    assert (each[:, 0] == 0).all() and torch.equal(each[:, 1:].flatten(), stream[: len(each) * 63])
    assert torch.equal(none.flatten(), stream[: none.numel()])


def test_calibration_windows_begin_with_what_the_tokenizer_puts_in_front(
    text: Text, tokenizer: PreTrainedTokenizerBase, bos_tokenizer_folder: Path
) -> None:
    adding = AutoTokenizer.from_pretrained(bos_tokenizer_folder)
    stream = tokenize(text, adding, "none")[0]
    places = stream.unfold(0, 31, 1)
    for bos in ("default", "each"):
        windows = sample_windows(text, adding, 32, 5, seed=0, bos=bos)
        assert windows.start == (0,) and windows.bos == bos and (windows.ids[:, 0] == 0).all()
        assert all((places == window).all(dim=1).any() for window in windows.ids[:, 1:])
    none = sample_windows(text, adding, 32, 5, seed=0, bos="none")
    assert none.start == () and 0 not in none.ids
    for bos in (
        "default",
        "none",
    ):  # of a tokenizer that adds nothing both are the windows of before there was a choice
        plain = sample_windows(text, tokenizer, 32, 5, seed=0, bos=bos)
        assert torch.equal(plain.ids, none.ids) and plain.start == ()
    assert sample_windows(text, tokenizer, 32, 5, seed=0, bos="each").start == (0,)
    with pytest.raises(NestQuantError, match="no room for text"):
        sample_windows(text, adding, 1, 5, seed=0)


def test_a_long_text_is_tokenized_as_far_as_it_is_needed(
    text: Text, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, read = tokenize(text, tokenizer, tokens=100)
    assert read  # a short text is always read to its end
    monkeypatch.setattr(windows_of, "WHOLE_UP_TO", 1000)
    monkeypatch.setattr(windows_of, "token_stream", partial(token_stream, block=2048, overlap=512))
    part, read = tokenize(text, tokenizer, tokens=100)
    assert not read and 100 <= len(part) < len(whole) / 2 and torch.equal(part, whole[: len(part)])
    assert torch.equal(token_windows(text, tokenizer, 50, most=2)[:2], whole[:100].view(2, 50))


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
    assert len(tokenize(text, tokenizer)[0]) > tokenizer.model_max_length
    assert "longer than" not in capfd.readouterr().err


def test_samples_are_windows_of_the_stream_chosen_by_the_seed(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    first = sample_windows(text, tokenizer, 32, 5, seed=0)
    again = sample_windows(text, tokenizer, 32, 5, seed=0)
    other = sample_windows(text, tokenizer, 32, 5, seed=1)
    assert first.ids.shape == (5, 32) and first.ids.dtype == torch.int64 and first.samples == 5
    assert torch.equal(first.ids, again.ids) and first.sha256 == again.sha256 == hash_tokens(first.ids)
    assert first.sha256 != other.sha256
    every_window = tokenize(text, tokenizer)[0].unfold(0, 32, 1)
    assert all((every_window == window).all(dim=1).any() for window in first.ids)


def test_samples_are_capped_at_the_places_there_are(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.txt").write_text("The lattice holds every point")
    text = load_text(str(tmp_path / "a.txt"), "train")
    tokens = len(tokenize(text, tokenizer)[0])
    windows = sample_windows(text, tokenizer, tokens - 2, 100, seed=0)
    assert windows.samples == len(windows.ids) == 3
    assert len({tuple(window.tolist()) for window in windows.ids}) == 3
