"""E8 arithmetic for the Triton kernels: a block is a tuple of eight float32 tensors, one for each entry.

Every function is straight-line code on such tuples, so that a GPU thread keeps its blocks in registers and no entries
are exchanged between threads. Comparing and counting in float32 is exact, as in `cpu.e8`: every number that
decides something is a small multiple of 2⁻⁹. Float32 has twice the throughput of int32 on the GPUs this is meant for.
"""

import triton
import triton.language as tl

# Adding 1.5·2²³ rounds to the nearest integer and leaves it, as two's complement, in the low 22 bits of the sum.
MAGIC = tl.constexpr(12582912.0)


@triton.jit
def whole(x):
    """The integer nearest to x, |x| < 2²²."""
    return (x + MAGIC) - MAGIC


@triton.jit
def bits(x):
    """The bits of a float32 as int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def with_sign(x, like):
    """x ≥ 0 or x ≤ 0 as it is where `like` ≥ 0, negated where `like` < 0."""
    return (bits(x) ^ (bits(like) & -2147483648)).to(tl.float32, bitcast=True)


@triton.jit
def representative(w, Q: tl.constexpr):
    """e8.voronoi.reduce without branches.

    Args:
        w: eight tensors u_i + ε_i, u an E8 point in doubled coordinates.
        Q: nesting ratio, at most 256.

    Returns:
        eight tensors: the representative of u.
    """
    residuals = ()
    sums = tl.zeros_like(bits(w[0]))
    signs = sums
    spread = tl.zeros_like(w[0])
    worst = spread
    least = spread + 8 * Q
    for i in tl.static_range(8):
        shifted = w[i] * (0.5 / Q) + MAGIC  # w is never half-way between multiples of 2q, thanks to ε
        r = w[i] - 2 * Q * (shifted - MAGIC)
        a = tl.abs(r)
        sums ^= bits(shifted)
        signs ^= bits(r)
        spread += a
        worst = tl.maximum(worst, a)
        least = tl.minimum(least, a)
        residuals = residuals + (r,)
    odd_even = (sums & 1) != 0
    odd_half = ((sums ^ (signs >> 31)) & 1) != 0
    gap = 4 * Q - spread + tl.where(odd_half, 2 * least, 0.0) - tl.where(odd_even, 2 * Q - 2 * worst, 0.0)
    half = gap < 0
    start = tl.where(half, -1.0 * Q, 0.0)
    flipped = start + tl.where(half, tl.where(odd_half, 2.0 * Q, 0.0), tl.where(odd_even, -2.0 * Q, 0.0))
    at = tl.where(half, least, worst)
    point = ()
    for i in tl.static_range(8):
        r = residuals[i]
        move = tl.where(tl.abs(r) == at, flipped, start)
        point = point + (r - 2.0 ** (-2 - i) + with_sign(move, r),)
    return point


@triton.jit
def nearest(y, step, bound, Q: tl.constexpr):
    """The nearest codeword candidate of blocks, and whether it is one.

    Args:
        y: eight tensors.
        step: size of u = 1, a scalar.
        bound: largest |u| allowed, plus a half.
        Q: nesting ratio.

    Returns:
        step·u (eight tensors), u the E8 point nearest to y/step in doubled coordinates, and Σ(y − step·u)², infinite
        where u is not its own representative or exceeds the bound.
    """
    wholes, residuals, jump, at, half = _coset(y, 0.5 / step)
    point = ()
    zero = tl.zeros_like(y[0])
    first, second, spread, error = zero, zero, zero, zero
    least = zero + float("inf")
    signs = bits(zero)
    for i in tl.static_range(8):
        r = residuals[i]
        hit = tl.where(tl.abs(r) == at, jump, 0.0)
        jump -= hit  # of several equal residuals the first is flipped
        u = 2 * wholes[i] + tl.where(r < 0, -half - hit, half + hit)
        v = step * u
        point = point + (v,)
        d = y[i] - v
        error += d * d
        w = u + 2.0 ** (-2 - i)
        a = tl.abs(w)
        second = tl.maximum(tl.minimum(a, first), second)
        first = tl.maximum(a, first)
        least = tl.minimum(a, least)
        spread += a
        signs ^= bits(w)
    corner = spread - tl.where(signs < 0, 2 * least, 0.0)
    inside = (first + second < 2 * Q) & (corner < 4 * Q) & (first < bound)
    return point, tl.where(inside, error, float("inf"))


@triton.jit
def _coset(y, inverse):
    """Which coset of D8 holds the E8 point nearest to t = y·inverse (see e8.nearest).

    Returns:
        the nearest integers n and the residuals t − n, eight tensors each; what the flip adds to the doubled
        coordinate in the direction of the residual; |residual| of the entry to flip; 1.0 in the half-integer coset.
    """
    wholes, residuals = (), ()
    sums = tl.zeros_like(bits(y[0]))
    signs = sums
    spread = tl.zeros_like(y[0])
    square = spread
    worst = spread - 1
    best = spread + 2
    for i in tl.static_range(8):
        t = y[i] * inverse
        shifted = t + MAGIC
        n = shifted - MAGIC
        r = t - n
        a = tl.abs(r)
        sums ^= bits(shifted)
        signs ^= (r < 0).to(tl.int32)
        spread += a
        square += r * r
        worst = tl.maximum(worst, a)
        best = tl.minimum(best, a)
        wholes = wholes + (n,)
        residuals = residuals + (r,)
    odd_even = (sums & 1).to(tl.float32)
    odd_half = ((sums ^ signs) & 1).to(tl.float32)
    even_distance = square + odd_even * (1 - 2 * worst)
    half_distance = square - spread + 2 + odd_half * (2 * best)
    take = half_distance < even_distance
    jump = tl.where(take, -2 * odd_half, 2 * odd_even)
    return wholes, residuals, jump, tl.where(take, best, worst), tl.where(take, 1.0, 0.0)


@triton.jit
def gauge(t):
    """e8.voronoi.gauge of eight tensors in ordinary coordinates."""
    zero = tl.zeros_like(t[0])
    first, second, spread = zero, zero, zero
    least = zero + float("inf")
    signs = bits(zero)
    for i in tl.static_range(8):
        a = tl.abs(t[i])
        second = tl.maximum(tl.minimum(a, first), second)
        first = tl.maximum(a, first)
        least = tl.minimum(a, least)
        spread += a
        signs ^= (t[i] < 0).to(tl.int32)
    corner = (spread - 2 * signs.to(tl.float32) * least) * 0.5
    return tl.maximum(first + second, corner)


@triton.jit
def interleave(e):
    """Eight tensors (..., B) of entries to one (..., 8·B), the entries of a block together."""
    low = tl.join(tl.join(e[0], e[4]), tl.join(e[2], e[6]))
    high = tl.join(tl.join(e[1], e[5]), tl.join(e[3], e[7]))
    return _flatten(tl.join(low, high))


@triton.jit
def _flatten(x):
    """(..., B, 2, 2, 2) to (..., 8·B) for one or two leading axes."""
    if len(x.shape) == 4:
        return tl.reshape(x, (x.shape[0] * 8,))
    else:
        return tl.reshape(x, (x.shape[0], x.shape[1] * 8))


@triton.jit
def separate(x, BLOCKS: tl.constexpr):
    """The inverse of `interleave` for a flat tensor of 8·BLOCKS entries."""
    low, high = tl.split(tl.reshape(x, (BLOCKS, 2, 2, 2)))  # even and odd entries
    e04, e26 = tl.split(low)
    e15, e37 = tl.split(high)
    e0, e4 = tl.split(e04)
    e2, e6 = tl.split(e26)
    e1, e5 = tl.split(e15)
    e3, e7 = tl.split(e37)
    return (e0, e1, e2, e3, e4, e5, e6, e7)
