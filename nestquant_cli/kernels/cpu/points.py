"""Points of a Voronoi code from their digits, in vectors of bytes: all that `e8.voronoi` does, for q ≤ 15.

Coordinates and residuals fit a byte. The offsets ε do not, but all they do is decide between equal numbers:

* Entries are ordered by |w_i| = |r_i + ε_i|. So are the keys 16·|r_i| + (15 − i for r_i ≥ 0, i for r_i < 0): the offset
  makes an entry with r_i ≥ 0 larger, the more the smaller i is, and one with r_i < 0 smaller.
* The half-integer coset is nearer if a sum of integers and of all ±ε_i is negative. The integers decide, and where they
  are zero the sign of ε_0 does, which is larger than all others together.
"""

from typing import Any

from llvmlite import ir

from .lanes import absolute, of_two, splat

MOST_SIDE = 15  # q whose keys fit a byte
_WHOLE = 15  # 16·|r| leaves this much for the place
_BITS = 4


def points(builder: Any, digits: list[Any], q: Any) -> list[Any]:
    """Doubled coordinates of the representatives of classes.

    Args:
        builder: of LLVM's code.
        digits: eight vectors of bytes.
        q: integer of at least 8 bits.

    Returns:
        Eight vectors of bytes with sign.
    """
    side = splat(builder, q, digits[0].type)
    residuals, odd_even = _residuals(builder, digits, side, q)
    negative = [builder.icmp_signed("<", r, _same(r, 0)) for r in residuals]
    sizes = [absolute(builder, r) for r in residuals]
    keys = [
        builder.or_(builder.shl(a, _same(a, _BITS)), builder.select(n, _same(a, i), _same(a, _WHOLE - i)))
        for i, (a, n) in enumerate(zip(sizes, negative, strict=True))
    ]
    signs = _folded(residuals, builder.xor)
    odd_half = builder.xor(odd_even, builder.icmp_signed("<", signs, _same(signs, 0)))
    worst, least = (_folded(keys, lambda a, b, name=name: of_two(builder, name, a, b)) for name in ("umax", "umin"))
    half = _nearer_half(builder, keys, sizes, negative, (worst, odd_even), (least, odd_half), side)
    nothing, width = _same(side, 0), builder.add(side, side)
    start = builder.select(half, builder.neg(side), nothing)
    flipped = builder.select(half, side, builder.neg(width))
    flips = builder.select(half, odd_half, odd_even)
    at = builder.select(flips, builder.select(half, least, worst), nothing)  # no key is zero
    found = []
    for r, key, minus in zip(residuals, keys, negative, strict=True):
        move = builder.select(builder.icmp_unsigned("==", key, at), flipped, start)
        found.append(builder.select(minus, builder.sub(r, move), builder.add(r, move)))
    return found


def _residuals(builder: Any, digits: list[Any], side: Any, q: Any) -> tuple[list[Any], Any]:
    """r in [−q, q) of the coordinates, and whether Σ n is odd, for u = r + 2q·n.

    What is reduced is u + q, which lies between −q and 6q. A negative number counts as a large one without sign, so the
    smaller of two is the one in range.
    """
    add, sub = builder.add, builder.sub
    width, last = add(side, side), digits[7]
    shifted = add(last, side)
    steps = [sub(digits[i], digits[i + 1]) for i in range(6)]
    steps[0] = sub(add(digits[0], digits[0]), digits[1])
    moved = [add(add(step, step), shifted) for step in (*steps, digits[6])]
    for i, t in enumerate(moved):
        if i < 6:
            t = of_two(builder, "umin", t, add(t, width))
        for _ in range(2 if i == 0 else 1):
            t = of_two(builder, "umin", t, sub(t, width))
        moved[i] = t
    moved.append(shifted)
    # Σ u less Σ r is 2q·Σ n, up to 8q = 2q·4: the bit above the lowest one of q is that of Σ n.
    twice = add(add(digits[0], last), last)
    twice = add(twice, twice)
    rest = sub(add(twice, twice), _folded(moved, add))
    lowest = builder.and_(q, builder.neg(q))
    bit = splat(builder, builder.add(lowest, lowest), side.type)
    odd = builder.icmp_unsigned("!=", builder.and_(rest, bit), _same(side, 0))
    return [sub(t, side) for t in moved[:7]] + [last], odd


def _nearer_half(
    builder: Any,
    keys: list[Any],
    sizes: list[Any],
    negative: list[Any],
    even: tuple[Any, Any],
    half: tuple[Any, Any],
    side: Any,
) -> Any:
    """Whether the half-integer coset is nearer. `even`, `half`: the key of what may be flipped, and whether it is."""
    (worst, odd_even), (least, odd_half) = even, half
    nothing, width = _same(side, 0), builder.add(side, side)
    twice_worst, twice_least = (_twice_size(builder, key) for key in (worst, least))
    gap = builder.sub(builder.add(width, width), _folded(sizes, builder.add))
    gap = builder.add(gap, builder.select(odd_half, twice_least, nothing))
    gap = builder.sub(gap, builder.select(odd_even, builder.sub(width, twice_worst), nothing))
    first = [
        builder.and_(odd, builder.icmp_unsigned("==", keys[0], key))
        for key, odd in ((worst, odd_even), (least, odd_half))
    ]
    below = builder.xor(builder.not_(negative[0]), builder.or_(*first))  # −ε_0, or +ε_0 where the first entry flips
    return builder.icmp_signed("<", builder.sub(gap, builder.zext(below, side.type)), nothing)


def _twice_size(builder: Any, key: Any) -> Any:
    return builder.and_(builder.lshr(key, _same(key, _BITS - 1)), _same(key, 2 * _WHOLE))


def _folded(values: list[Any], of_two: Any) -> Any:
    """All of several vectors in one, by pairs."""
    while len(values) > 1:
        values = [of_two(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _same(like: Any, value: int) -> Any:
    return ir.Constant(like.type, [value] * like.type.count)
