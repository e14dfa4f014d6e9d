"""Ids of a text that is tokenized block by block are those of the whole, for every kind of tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nestquant_cli.calibration.demo_text import demo_documents
from nestquant_cli.calibration.token_stream import affixes, can_split, token_stream

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)  # of Llama 3
CORPUS = "\n\n".join(demo_documents("test"))[:60_000]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def bpe(words: Any, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = words
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([CORPUS], trainer)
    return made


def without_words() -> Tokenizer:
    """As Llama 2 has it: spaces are letters, and the whole text is one word."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    state = json.loads(bpe(pre_tokenizers.Metaspace(prepend_scheme="never"), marks).to_str())
    return Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([CORPUS], trainer)
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator([CORPUS], trainer)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama2": without_words,
    "llama3": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), BYTES])),
    "qwen": lambda: bpe(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS.replace("{1,3}", "")), "isolated"), BYTES]),
        normalizers.NFC(),
    ),
    "smollm": lambda: bpe(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "unigram": unigram,
    "word piece": word_piece,
}
ODD = [
    "=",
    "  ",
    "\n",
    "\t",
    "12",
    "4567",
    "é",
    "e\u0301",
    "🙂",
    "👩‍👩‍👧",
    "中文",
    "'ll",
    "<s>",
    "a" * 9,
    "\u00a0",
    "ﬁ",
    "İ",
]
pieces = st.one_of(
    st.text(max_size=40),
    st.tuples(st.sampled_from(ODD), st.integers(1, 150)).map(lambda pair: pair[0] * pair[1]),
    st.tuples(st.integers(0, 50_000), st.integers(0, 600)).map(lambda pair: CORPUS[pair[0] : sum(pair)]),
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param]())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(pieces, max_size=8), block=st.sampled_from([80, 200, 700]), overlap=st.sampled_from([70, 200]))
def test_ids_are_those_of_the_whole(kind: PreTrainedTokenizerBase, texts: list[str], block: int, overlap: int) -> None:
    found = [np.empty(0, np.int32), *token_stream(texts, kind, block, overlap)]
    assert np.concatenate(found).tolist() == kind("".join(texts), add_special_tokens=False)["input_ids"]


def test_ordinary_text_is_given_away_block_by_block(kind: PreTrainedTokenizerBase) -> None:
    assert can_split(kind)
    found = list(token_stream([CORPUS], kind, 4096, 1024))
    assert len(found) > len(CORPUS) / 4096 - 2 and all(part.dtype == np.int32 for part in found)
    assert np.concatenate(found).tolist() == kind(CORPUS, add_special_tokens=False)["input_ids"]


def test_digits_in_groups_are_joined_in_step() -> None:
    """Groups of three in a long number, counted from its beginning: tokens agree at places where the groups do not."""
    kind = PreTrainedTokenizerFast(tokenizer_object=KINDS["llama3"]())
    text = "4567" * 700
    found = np.concatenate(list(token_stream([text], kind, 300, 200)))
    assert found.tolist() == kind(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_cannot_be_split_gets_the_whole_text(tiny_tokenizer_folder: Path) -> None:
    state = json.loads((tiny_tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    for change in (
        {"normalizer": {"type": "Unknown"}},
        {"model": state["model"] | {"dropout": 0.1}},
        {"model": state["model"] | {"type": "Unigram"}, "pre_tokenizer": None},
    ):
        kind = _Described(state | change)
        assert not can_split(kind)  # type: ignore[arg-type]
    found = list(token_stream(["a", "bc"], kind, 1, 1))  # type: ignore[arg-type]
    assert [part.tolist() for part in found] == [[3]]


class _Described:
    """A tokenizer of a kind that its state says, which counts characters."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    @property
    def backend_tokenizer(self) -> "_Described":
        return self

    def to_str(self) -> str:
        return json.dumps(self.state)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}


def test_what_a_tokenizer_adds_is_told(tiny_tokenizer_folder: Path, bos_tokenizer_folder: Path) -> None:
    plain, adding = (
        affixes(AutoTokenizer.from_pretrained(each)) for each in (tiny_tokenizer_folder, bos_tokenizer_folder)
    )
    assert plain is not None and (plain.before, plain.after) == ((), ())
    assert adding is not None and (adding.before, adding.after) == ((0,), ())
