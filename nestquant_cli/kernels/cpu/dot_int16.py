"""Sums of int8 rows with one to four tokens of 16 bits, bound by reading the rows. Compiled by Numba.

The instruction multiplies unsigned with signed bytes and adds four neighbouring products up. Entries of the rows are
made 128 larger, and 128 times the sum of a token's digits is taken off in the end: one number a token and digit.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .amx import STEP
from .instructions import VNNI, offers
from .lanes import splat
from .prefetch import emit_prefetch
from .square import INTS, SIDE, constant, put, vector
from .vnni import SIGNS, dot4, lanes_sum

MOST = 4  # tokens
DIGITS = 2
# Rows at a time, by tokens: their sums stay in registers.
TOGETHER = (0, 8, 4, 2, 2)

_WIDTH = 4  # bytes of a word
_INT, _WORD = ir.IntType(32), ir.IntType(64)
_MASK = ir.VectorType(ir.IntType(1), SIDE)


@intrinsic(prefer_literal=True)
def dot_few(typingctx, rows, stride, entries, digits, length, sums, tokens):
    """Σ (row + 128)·digit of TOGETHER[tokens] rows: int32 (rows, tokens, DIGITS) at `sums`, modulo 2³².

    Args:
        rows: address of the first row of int8.
        stride: bytes from a row to the next.
        entries: of a row, a multiple of four.
        digits: address of int8 (tokens, DIGITS, length).
        length: entries, rounded up to a multiple of STEP; zeros beyond the entries.
        sums: address of what is filled.
        tokens: 1 to MOST, known when it is compiled.
    """

    def codegen(context, builder, signature, arguments):
        if offers(context, VNNI):
            _emit(builder, signature.args[6].literal_value, *arguments[:6])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, tokens), codegen


def _emit(builder, tokens, rows, stride, entries, digits, length, sums):
    together = TOGETHER[tokens]
    starts = [builder.add(rows, builder.mul(stride, _WORD(row))) for row in range(together)]
    lines = [builder.add(digits, builder.mul(length, _WORD(i))) for i in range(tokens * DIGITS)]
    held = [[cgutils.alloca_once_value(builder, constant(INTS, 0)) for _ in lines] for _ in starts]

    def step(at, load):
        parts = [vector(builder, builder.add(line, at), INTS) for line in lines]
        for start, places in zip(starts, held, strict=True):
            place = builder.add(start, at)
            emit_prefetch(builder, builder.add(place, builder.mul(stride, _WORD(together))))  # of the rows that follow
            weights = builder.xor(load(place), SIGNS)
            for part, kept in zip(parts, places, strict=True):
                builder.store(dot4(builder, builder.load(kept), weights, part), kept)

    whole = builder.udiv(entries, _WORD(STEP))
    with cgutils.for_range(builder, whole) as loop:
        step(builder.mul(loop.index, _WORD(STEP)), lambda address: vector(builder, address, INTS))
    done = builder.mul(whole, _WORD(STEP))
    rest = builder.udiv(builder.sub(entries, done), _WORD(_WIDTH))
    with builder.if_then(builder.icmp_unsigned(">", rest, _WORD(0))):
        mask = builder.icmp_unsigned("<", ir.Constant(INTS, list(range(SIDE))), splat(builder, rest, INTS))
        step(done, lambda address: _some(builder, address, mask))
    for i, kept in enumerate(kept for places in held for kept in places):
        put(builder, lanes_sum(builder, builder.load(kept)), builder.add(sums, _WORD(i * _WIDTH)))


def _some(builder, address, mask):
    """The words under a mask, zeros elsewhere; no byte beyond is read."""
    pointer = builder.inttoptr(address, INTS.as_pointer())
    of = ir.FunctionType(INTS, [pointer.type, _INT, _MASK, INTS])
    load = builder.module.declare_intrinsic("llvm.masked.load.v16i32.p0", (), of)
    return builder.call(load, [pointer, _INT(1), mask, constant(INTS, 0)])
