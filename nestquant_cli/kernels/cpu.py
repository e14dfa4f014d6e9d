"""The kernels on the CPU: Numba behind the same functions as `kernels.reference`, on torch tensors without a copy.

The compiled loops release the GIL and run on parts of the blocks in a pool of Python threads, as many as torch is set
to. That is safe from any thread and after a fork, which Numba's own parallel loops are not.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..lattice.code import BLOCK, NestedCode, row_bytes
from . import cpu_encode, cpu_words, reference
from .cpu_lattice import LANES

_LEAST_BLOCKS = 128 * LANES  # a part with fewer blocks costs more to hand to a thread than to do
_PARTS = 4  # parts for each thread, as the machine may not be ours alone


def quantize(x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]:
    """As `reference.quantize`."""
    reference.check_rows(x, scale)
    rows, entries = x.shape
    width = entries // BLOCK
    x, scale = x.float().contiguous().view(-1), scale.float().contiguous()
    v = torch.empty(rows, entries, dtype=reference.entry_type(code))
    index = torch.empty(rows, width, dtype=torch.uint8)
    fixed = x.numpy(), (1 / scale).numpy(), width, multipliers_of(code), np.float32(code.q), np.float32(code.limit)
    choices = index.view(-1).numpy()
    filled = bytes_of(v), not code.int8, choices
    share(lambda start, stop: cpu_encode.quantize(*fixed, *filled, start, stop), rows * width)
    overloaded = np.flatnonzero(choices == cpu_encode.OVERLOADED)
    if overloaded.size:
        at = torch.from_numpy(overloaded)
        y = x.view(-1, BLOCK)[at] / scale[at // width, None]
        v.view(-1, BLOCK)[at] = clip(y, code).to(v.dtype)
        index.view(-1)[at] = code.k - 1
    return v, index, overloaded.size


def pack(v: Tensor, index: Tensor, code: NestedCode) -> Tensor:
    """As `reference.pack`."""
    packed = torch.empty(v.shape[0], row_bytes(v.shape[1], code.word_bits), dtype=torch.uint8)
    values, choices = v.contiguous().view(-1).numpy(), index.contiguous().view(-1).numpy()
    fixed = values, choices, index.shape[1], multipliers_of(code), code.q, code.word_bits, packed.numpy()
    share(lambda start, stop: cpu_words.pack(*fixed, start, stop), v.shape[0], index.shape[1])
    return packed


def unpack(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """As `reference.unpack`."""
    width = row_bytes(entries, code.word_bits)
    if packed.shape[1] != width:
        raise ValueError(f"rows of {entries} entries need {width} bytes, not {packed.shape[1]}")
    v = torch.empty(packed.shape[0], entries, dtype=reference.entry_type(code))
    blocks = entries // BLOCK
    fixed = (
        packed.contiguous().numpy(),
        blocks,
        code.word_bits,
        code.q,
        multipliers_of(code),
        bytes_of(v),
        not code.int8,
    )
    share(lambda start, stop: cpu_words.unpack(*fixed, start, stop), packed.shape[0] * blocks)
    return v


def indices(packed: Tensor, width: int, code: NestedCode) -> Tensor:
    """Multiplier indices (rows, width) uint8 of packed words; the largest one for words that no encoder writes."""
    index = torch.zeros(packed.shape[0], width, dtype=torch.uint8)
    if code.k == 1:  # q⁸ may not even fit 64 bits
        return index
    fixed = packed.contiguous().numpy(), code.word_bits, np.uint64(code.q**BLOCK), code.k, index.numpy()
    share(lambda start, stop: cpu_words.indices(*fixed, start, stop), packed.shape[0], width)
    return index


def block_errors(x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor:
    """As `reference.block_errors`."""
    errors = torch.empty(x.shape[0], scales.shape[0], dtype=torch.float32)
    steps = (scales.float() * multipliers).numpy()
    bounds = (torch.div(limit, multipliers, rounding_mode="floor") + 0.5).float().numpy()
    fixed = x.float().contiguous().view(-1).numpy(), steps, bounds, np.float32(q), errors.numpy()
    share(lambda start, stop: cpu_encode.block_errors(*fixed, start, stop), x.shape[0], len(steps))
    return errors


def clip(y: Tensor, code: NestedCode) -> Tensor:
    """As `reference.clip`, but float32."""
    v = torch.empty_like(y)
    m, q, limit = (np.float32(value) for value in (code.multipliers[-1], code.q, code.limit))
    cpu_encode.shrink(reference.onto_boundary(y, code).numpy(), m, q, limit, reference.CLIP_STEPS, v.numpy())
    return v


def bytes_of(v: Tensor) -> np.ndarray:
    """The bytes of v as flat int32."""
    return v.view(-1).view(torch.int32).numpy()


@lru_cache(maxsize=256)
def multipliers_of(code: NestedCode) -> np.ndarray:
    """As the compiled loops take them."""
    return np.asarray(code.multipliers, dtype=np.float32)


def share(work: Callable[[int, int], object], items: int, blocks_per_item: int = 1, multiple: int = 1) -> None:
    """Calls work(start, stop) on parts of 0 … items, in this thread when there is too little to share.

    Args:
        work: to be done in parts, of any size.
        items: how many there are.
        blocks_per_item: how much work one is, in blocks.
        multiple: parts start at multiples of this.
    """
    if items == 0:
        return
    threads = torch.get_num_threads()
    parts = min(_PARTS * threads, items * blocks_per_item // _LEAST_BLOCKS)
    if threads == 1 or parts < 2:
        work(0, items)
        return
    size = -(-items // parts)
    multiple = LANES if blocks_per_item == 1 else multiple
    size = -(-size // multiple) * multiple
    starts = range(0, items, size)
    list(_pool(threads).map(work, starts, (min(start + size, items) for start in starts)))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nestquant")


# A forked child has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
