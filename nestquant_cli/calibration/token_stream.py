"""Token ids of a text of any length in bounded memory: tokenized block by block, to the ids of the whole.

A tokenizer keeps some 150 bytes for each character that it is given at once. So a text is cut into blocks that
overlap. Near a cut the tokens of a block may differ from those of the whole text. Farther inside, two neighbouring
blocks agree again. They are joined in the middle of a run of tokens that both have at the same places, where both start
a word. From there on both continue alike: splitting into words goes from left to right and looks ahead a little, and
the tokens of a word depend on that word. (Without words, as in Llama 2, the boundary of two tokens depends on these
two.) Where there is no such place, the two blocks are tokenized as one, in the worst case the whole text. Tokenizers
with parts that are not listed here get the whole text as well.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]

BLOCK = 1 << 18  # characters that are tokenized at once: at 150 bytes each, 40 MB of memory
OVERLAP = 1 << 11  # characters that a block shares with the one before, some 500 tokens of English: room for a run
RUN = 16  # consecutive tokens that two blocks must share; they are joined in the middle of it
MARGIN = 64  # characters at the end of a block whose tokens may depend on what follows
_PROBE = "a"  # a text that every tokenizer has tokens for

_NORMALIZERS = {
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Replace",
    "Sequence",
    "Strip",
    "StripAccents",
}
_PRE_TOKENIZERS = {
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "Metaspace",
    "Punctuation",
    "Sequence",
    "Split",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
}
_ONE_WORD_AT_A_TIME = {"Unigram", "WordLevel", "WordPiece"}  # models whose words must have been split before


@dataclass(frozen=True)
class Affixes:
    """Token ids that a tokenizer adds to every text by itself.

    Attributes:
        before, after: ids in front of the text and after it, such as BOS and EOS; empty for most tokenizers.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def affixes(tokenizer: "PreTrainedTokenizerBase") -> Affixes | None:
    """The ids that a tokenizer adds around a text; None where the text's own tokens change with them."""
    plain, whole = _plain_ids(tokenizer, _PROBE), tokenizer(_PROBE, verbose=False)["input_ids"]
    for first in range(len(whole) - len(plain) + 1):
        if plain and whole[first : first + len(plain)] == plain:
            return Affixes(tuple(whole[:first]), tuple(whole[first + len(plain) :]))
    return None


def can_split(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether all parts of a tokenizer work from left to right and look no farther than a word and its spaces."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    try:
        state = json.loads(backend.to_str())
    except Exception:  # parts that are written in Python cannot be serialized
        return False
    model = state["model"]
    words = _kinds(state["pre_tokenizer"])
    if model.get("dropout") or not _kinds(state["normalizer"]) <= _NORMALIZERS or not words <= _PRE_TOKENIZERS:
        return False
    return model.get("type") == "BPE" or (model.get("type") in _ONE_WORD_AT_A_TIME and bool(words))


def token_stream(
    pieces: Iterable[str], tokenizer: "PreTrainedTokenizerBase", block: int = BLOCK, overlap: int = OVERLAP
) -> Iterator[Ids]:
    """Yields the ids of a text, without special tokens, in arrays (n,) int32.

    Args:
        pieces: pieces of the text, of any sizes, one directly after the other.
        tokenizer: a tokenizer of any kind.
        block, overlap: characters that are tokenized at once, and that two blocks share.
    """
    if not can_split(tokenizer):
        yield np.array(_plain_ids(tokenizer, "".join(pieces)), dtype=np.int32)
        return
    text = _Reader(pieces)
    start, done = 0, 0  # first character of the current block, and number of its tokens that were yielded
    size, end = block, text.read_to(block)
    found = _Tokens(tokenizer, text.part(start, end), start)
    while not text.ended:
        cut, end = end, text.read_to(end + size)
        begin = max(start, cut - overlap)
        following = _Tokens(tokenizer, text.part(begin, end), begin)
        joint = found.join(following, cut - MARGIN)
        if joint is None or joint[0] < done:
            size *= 2
            found = _Tokens(tokenizer, text.part(start, end), start)  # its first `done` tokens are the same
            continue
        last, first = joint
        yield found.ids[done:last]
        size, start, done, found = block, begin, first, following
        text.forget(start)
    yield found.ids[done:]


class _Reader:
    """Characters of a text by their positions in the whole; in memory are those between `forget` and `read_to`."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._held, self._start = "", 0
        self.ended = False

    def read_to(self, end: int) -> int:
        """Reads up to position `end` or to the end of the text, which sets `ended`; returns the position reached.

        A longer piece is cut, and the rest stays for later.
        """
        parts, have = [self._held], self._start + len(self._held)
        while have <= end:  # one character more than wanted shows whether the text ends
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
                break
            parts.append(piece)
            have += len(piece)
        self._held = "".join(parts)
        return min(end, have)

    def part(self, start: int, end: int) -> str:
        return self._held[start - self._start : end - self._start]

    def forget(self, start: int) -> None:
        """Drops the characters in front of position `start`."""
        self._held, self._start = self._held[start - self._start :], start


class _Tokens:
    """The tokens of one block: ids, the places in the whole text where each starts and ends, and numbers of the words
    that they are of (None without words), each (n,)."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, start: int) -> None:
        found = tokenizer(
            text, add_special_tokens=False, verbose=False, return_attention_mask=False, return_offsets_mapping=True
        )
        self.ids: Ids = np.array(found["input_ids"], dtype=np.int32)
        places = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start
        self.starts, self.ends = places[:, 0], places[:, 1]
        self.words: list[int | None] | None = found.word_ids() if _has_words(tokenizer) else None

    def join(self, following: "_Tokens", before: int) -> tuple[int, int] | None:
        """Number of tokens of this block to keep, and of the following one to leave out; None where no run is shared.

        Args:
            following: the next block, which overlaps this one.
            before: position in the text beyond which this block's tokens may differ from the whole text's.
        """
        if len(following.ids) == 0:
            return None
        tail = int(np.searchsorted(self.starts, following.starts[0]))
        places = {
            key: number
            for number, key in enumerate(
                zip(following.ids.tolist(), following.starts.tolist(), following.ends.tolist(), strict=True)
            )
            if key[1] <= before
        }
        run, previous = 0, -2
        for number in range(tail, len(self.ids)):
            if self.ends[number] > before:
                break
            place = places.get((int(self.ids[number]), int(self.starts[number]), int(self.ends[number])), -2)
            run = run + 1 if place == previous + 1 and place >= 0 else int(place >= 0)
            previous = place
            here, there = number - RUN // 2, place - RUN // 2
            if run >= RUN and self._parts(here) and following._parts(there):
                return here, there
        return None

    def _parts(self, number: int) -> bool:
        """Whether token `number` and the one before share no character, and no word."""
        apart = bool(self.ends[number - 1] <= self.starts[number])
        return apart and (self.words is None or self.words[number - 1] != self.words[number])


def _has_words(tokenizer: Any) -> bool:
    return tokenizer.backend_tokenizer.pre_tokenizer is not None


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # verbose=False: no warning that the stream is longer than the model's context, as it is cut into windows
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
    return ids


def _kinds(part: Any) -> set[str]:
    """Types of a part of a serialized tokenizer and of the parts inside it."""
    if not part:
        return set()
    inside = [each for name in ("normalizers", "pretokenizers") for each in part.get(name, ())]
    return {str(part.get("type")), *(kind for each in inside for kind in _kinds(each))}
