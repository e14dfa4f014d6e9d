"""Checks what is stored of a nested matrix: every word, and what the report records of the words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...e8.code import BLOCK, INT16_LIMIT, NestedCode, row_bytes
from ...e8.voronoi import point_of
from ...e8.words import split, unpack_words
from ...kernels import for_device
from ..protocol import Checked
from ..row_scale import check_row_scales

Bytes = NDArray[np.uint8]

_CHUNK_BLOCKS = 1 << 19  # blocks unpacked at a time: some 50 MB of memory


def check(code: NestedCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
    """Row scales and words; arguments as in `Codec.check`."""
    scales = check_row_scales(stored["row_scale"])
    histogram, words = check_words(stored["words"], entries, code)
    return Checked({"row_scale": scales, "words": words}, histogram)


def check_record(code: NestedCode, record: Mapping[str, Any], checked: Checked) -> str | None:
    """What a record says of multipliers, clipped blocks and the histogram of indices that is not so."""
    if record.get("multipliers") != list(code.multipliers):
        return f"records the multipliers {record.get('multipliers')}, not those of config.json"
    if type(record.get("clipped_blocks")) is not int:
        return f"records the clipped_blocks {record.get('clipped_blocks')}, not a number"
    if record.get("beta_histogram") != checked.histogram:
        return f"records the β histogram {record.get('beta_histogram')}, the words have {checked.histogram}"
    return None


def check_words(packed: Bytes, entries: int, code: NestedCode) -> tuple[list[int], str | None]:
    """Every word of a matrix: its index, its padding and its decoded entries.

    Args:
        packed: (rows, row bytes), the tensor `words`.
        entries: entries of a row.
        code: code of its weights.

    Returns:
        how many words have each multiplier index 0 … k−1, and the first thing wrong, None if nothing.
    """
    blocks = entries // BLOCK
    assert packed.shape[1] == row_bytes(entries, code.word_bits)
    histogram = np.zeros(code.k, dtype=np.int64)
    step = max(1, _CHUNK_BLOCKS // blocks)
    for first in range(0, packed.shape[0], step):
        chunk = np.array(packed[first : first + step])  # a copy: the bytes of a mapped file cannot be written
        index = multiplier_index(chunk, blocks, code)
        problem = _padding(chunk, blocks, code) or _out_of_range(index, code) or _too_large(chunk, entries, code)
        if problem:
            row, what = problem
            return histogram.tolist(), f"row {first + row}: {what}"
        histogram += np.bincount(index.reshape(-1), minlength=code.k)
    return histogram.tolist(), None


def multiplier_index(packed: Bytes, blocks: int, code: NestedCode) -> NDArray[np.int64]:
    """⌊word / q⁸⌋ of every word of packed rows: (rows, blocks)."""
    if code.word_bits in (8, 16, 32, 64):
        words = packed.view(f"<u{code.word_bits // 8}").astype(np.uint64)
    else:
        words = unpack_words(torch.from_numpy(packed), blocks, code.word_bits).numpy().view(np.uint64)
    points = code.q**BLOCK
    if points > np.iinfo(np.uint64).max:
        return np.zeros(words.shape, dtype=np.int64)
    return (words // np.uint64(points)).astype(np.int64)


def _padding(packed: Bytes, blocks: int, code: NestedCode) -> tuple[int, str] | None:
    used = blocks * code.word_bits - 8 * (packed.shape[1] - 1)  # bits of the last byte that belong to a word
    rows = np.flatnonzero(packed[:, -1].astype(np.int64) >> used)
    return (int(rows[0]), "the padding after the last word is not zero") if rows.size else None


def _out_of_range(index: NDArray[np.int64], code: NestedCode) -> tuple[int, str] | None:
    at = np.argwhere(index >= code.k)
    if not at.size:
        return None
    row, block = (int(place) for place in at[0])
    return row, f"word {block} is not below k·q⁸, its multiplier index would be {index[row, block]} of {code.k}"


def _too_large(packed: Bytes, entries: int, code: NestedCode) -> tuple[int, str] | None:
    largest = np.abs(decode_wide(packed, entries, code)).max(axis=1)
    rows = np.flatnonzero(largest > code.limit)
    return (int(rows[0]), f"a word decodes to {largest[rows[0]]}, beyond {code.limit}") if rows.size else None


def decode_wide(packed: Bytes, entries: int, code: NestedCode) -> NDArray[np.int64]:
    """Decoded rows (rows, entries) in a type that no word overflows; |u| ≤ 2q for every word."""
    rows = torch.from_numpy(packed)
    if code.multipliers[-1] * 2 * code.q <= INT16_LIMIT:
        wide = NestedCode(code.q, code.multipliers, code.word_bits, INT16_LIMIT)
        return for_device(rows.device).unpack(rows, entries, wide).numpy().astype(np.int64)
    digits, index = split(unpack_words(rows, entries // BLOCK, code.word_bits), code.q)
    m = torch.tensor(code.multipliers, dtype=torch.int64)[index.clamp(0, code.k - 1)]
    decoded = m[..., None] * point_of(digits, code.q).to(torch.int64)
    return decoded.view(rows.shape[0], entries).numpy()
