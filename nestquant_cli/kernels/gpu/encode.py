"""Rounding blocks to codewords in Triton: a thread holds a block and tries every multiplier."""

import triton
import triton.language as tl

from .e8 import gauge, interleave, nearest, separate


@triton.jit
def quantize_kernel(
    x,
    factors,
    multipliers,
    bounds,
    v,
    index,
    overloads,
    blocks,
    size,
    K,
    LIMIT: tl.constexpr,
    Q: tl.constexpr,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Encodes TILE blocks of all rows.

    Args:
        x: (size,) floating point.
        factors: (rows,) float32, 1/scale.
        multipliers, bounds: (K,) float32: m, and the largest |u| under it plus a half.
        v, index: (size,) int8 or int16 and (size/8,) uint8, written.
        overloads: int32 counter of the blocks that no multiplier holds.
        blocks: number of blocks in a row.
        LIMIT: largest |v|.
        STEPS: of a clipped block towards zero.
    """
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.program_id(0).to(tl.int64) * (8 * TILE) + tl.arange(0, 8 * TILE)
    held = at < size
    factor = tl.load(factors + block // blocks, mask=block < size // 8, other=0.0)
    y = _scaled(separate(tl.load(x + at, mask=held, other=0.0).to(tl.float32), TILE), factor)
    chosen, choice, left = _rounded(y, multipliers, bounds, K, Q)
    lost = tl.sum((left & (block < size // 8)).to(tl.int32))
    if lost > 0:
        tl.atomic_add(overloads, lost)
    largest = tl.load(multipliers + K - 1)
    bound = tl.load(bounds + K - 1)
    chosen = _clipped(y, chosen, left, largest, bound, lost > 0, LIMIT, Q, STEPS)
    tl.store(v + at, interleave(_integers(chosen, v.dtype.element_ty)), mask=held)
    tl.store(index + block, choice.to(tl.uint8), mask=block < size // 8)


@triton.jit
def _rounded(y, multipliers, bounds, K, Q: tl.constexpr):
    """The codeword of least error (eight tensors), its multiplier's index, and whether no multiplier holds the block.

    The index of such a block is K − 1.
    """
    best = tl.full(y[0].shape, float("inf"), tl.float32)
    choice = tl.zeros_like(best).to(tl.int32) + (K - 1)
    chosen = (best, best, best, best, best, best, best, best)  # replaced in every block, by a codeword or by zeros
    for i in range(K):
        point, error = nearest(y, tl.load(multipliers + i), tl.load(bounds + i), Q)
        better = error < best
        best = tl.where(better, error, best)
        choice = tl.where(better, i, choice)
        chosen = _either(better, point, chosen)
    return chosen, choice, best == float("inf")


@triton.jit
def _clipped(y, chosen, left, largest, bound, any_left, LIMIT: tl.constexpr, Q: tl.constexpr, STEPS: tl.constexpr):
    """`chosen`, and where `left` what `reference.nested.clip` makes of y under the largest multiplier."""
    zero = tl.zeros_like(left.to(tl.float32))
    chosen = _either(left, (zero, zero, zero, zero, zero, zero, zero, zero), chosen)
    step = tl.where(any_left, 0, STEPS)
    while step < STEPS:
        onto = _scaled(y, 1 / tl.maximum(_reach(y, largest, LIMIT, Q), 1.0))
        shrink = 1 - step.to(tl.float32) * (1.0 / STEPS)
        point, error = nearest(_scaled(onto, shrink), largest, bound, Q)
        fits = left & (error < float("inf"))
        chosen = _either(fits, point, chosen)
        left = left & (error == float("inf"))
        step = tl.where(tl.max(left.to(tl.int32)) > 0, step + 1, STEPS)
    return chosen


@triton.jit
def _reach(y, largest, LIMIT: tl.constexpr, Q: tl.constexpr):
    """How many times beyond the code under the largest multiplier each block lies."""
    top = tl.abs(y[0])
    for i in tl.static_range(1, 8):
        top = tl.maximum(top, tl.abs(y[i]))
    return tl.maximum(gauge(_scaled(y, 0.5 / largest)) * (1.0 / Q), top * (1.0 / LIMIT))


@triton.jit
def errors_kernel(x, steps, bounds, errors, size, CANDIDATES, Q: tl.constexpr, TILE: tl.constexpr):
    """Fills errors (size/8, CANDIDATES): squared error of blocks x (size,) with step·u for each (step, bound)."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    at = tl.program_id(0).to(tl.int64) * (8 * TILE) + tl.arange(0, 8 * TILE)
    y = separate(tl.load(x + at, mask=at < size, other=0.0).to(tl.float32), TILE)
    for j in range(CANDIDATES):
        _, error = nearest(y, tl.load(steps + j), tl.load(bounds + j), Q)
        tl.store(errors + block * CANDIDATES + j, error, mask=block < size // 8)


@triton.jit
def _scaled(entries, factor):
    """Eight tensors times a factor."""
    scaled = ()
    for i in tl.static_range(8):
        scaled = scaled + (entries[i] * factor,)
    return scaled


@triton.jit
def _either(where, a, b):
    """a where the condition holds, else b, for eight tensors each."""
    chosen = ()
    for i in tl.static_range(8):
        chosen = chosen + (tl.where(where, a[i], b[i]),)
    return chosen


@triton.jit
def _integers(entries, dtype: tl.constexpr):
    """Eight float32 tensors of integers as `dtype`."""
    integers = ()
    for i in tl.static_range(8):
        integers = integers + (entries[i].to(tl.int32).to(dtype),)
    return integers
