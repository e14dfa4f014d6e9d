"""Windows of a tuning: none that is held out is tuned on, and all are seen before any is seen again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.tuning.held_out import TuneText, TuneWindows, read_tune_windows
from nestquant_cli.tuning.settings import TuneSettings
from tests.families import CONFIGS

CONFIG = CONFIGS["llama"]()
SETTINGS = TuneSettings(seqlen=32, held_out=5)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    return made


def test_the_text_is_divided_by_the_seed(tokenizer: PreTrainedTokenizerBase, tiny_text_file: Path) -> None:
    windows = read_tune_windows(TuneText(str(tiny_text_file)), tokenizer, CONFIG, SETTINGS, 0)
    again = read_tune_windows(TuneText(str(tiny_text_file)), tokenizer, CONFIG, SETTINGS, 0)
    other = read_tune_windows(TuneText(str(tiny_text_file)), tokenizer, CONFIG, SETTINGS, 1)
    assert windows.held_out.shape == (5, 32) and windows.train.shape[1] == 32
    assert torch.equal(windows.train, again.train)
    assert not torch.equal(windows.held_out, other.held_out)
    stream = tokenizer(tiny_text_file.read_text(encoding="utf-8"))["input_ids"]
    assert len(windows.train) + 5 == len(stream) // 32
    assert sorted(map(tuple, torch.cat([windows.train, windows.held_out]).tolist())) == sorted(
        tuple(stream[start : start + 32]) for start in range(0, len(stream) // 32 * 32, 32)
    )


def test_every_window_comes_once_in_a_pass() -> None:
    windows = TuneWindows(torch.arange(6)[:, None], torch.empty(0, 1), {}, 0)
    seen = [int(ids) for step in range(6) for ids in windows.of_step(step, 2)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_a_short_text_is_refused(tokenizer: PreTrainedTokenizerBase, tiny_text_file: Path) -> None:
    with pytest.raises(NestQuantError, match="held out"):
        read_tune_windows(TuneText(str(tiny_text_file)), tokenizer, CONFIG, TuneSettings(seqlen=32, held_out=60_000), 0)


def test_windows_begin_with_what_the_tokenizer_puts_in_front(bos_tokenizer_folder: Path, tiny_text_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bos_tokenizer_folder)
    stream = tokenizer(tiny_text_file.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    for bos, start in (("default", [0]), ("each", [0]), ("none", [])):
        source = TuneText(str(tiny_text_file), bos=bos)
        windows = read_tune_windows(source, tokenizer, CONFIG, SETTINGS, 0)
        length = 32 - len(start)
        assert windows.about["bos"] == bos and windows.about["window_start"] == start
        assert sorted(torch.cat([windows.train, windows.held_out]).tolist()) == sorted(
            start + stream[first : first + length] for first in range(0, len(stream) // length * length, length)
        )


def test_tokens_that_the_model_does_not_know_are_refused(
    tokenizer: PreTrainedTokenizerBase, tiny_text_file: Path
) -> None:
    small = CONFIGS["llama"]()
    small.vocab_size = 40
    with pytest.raises(NestQuantError, match=r"makes token \d+, the model knows 40 tokens"):
        read_tune_windows(TuneText(str(tiny_text_file)), tokenizer, small, SETTINGS, 0)
