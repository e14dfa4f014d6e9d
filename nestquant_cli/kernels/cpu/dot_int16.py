"""Sums of int8 rows with one to four tokens of 16 bits, bound by reading the rows. Compiled by Numba.

The instruction multiplies unsigned with signed bytes and adds four neighbouring products up. Entries of the rows are
made 128 larger, and 128 times the sum of a token's digits is taken off in the end: one number a token and digit.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .instructions import VNNI, offers
from .prefetch import emit_prefetch

MOST = 4  # tokens
STEP = 64  # entries that are multiplied at a time; digits are followed by zeros up to a multiple of it
DIGITS = 2
# Rows at a time, by tokens: their sums stay in registers.
TOGETHER = (0, 8, 4, 2, 2)

_LANES, _WIDTH = 16, 4  # words of a vector, bytes of a word
_INT, _WORD = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_INT, _LANES)
_MASK = ir.VectorType(ir.IntType(1), _LANES)
_SIGNS = -0x7F7F7F80  # 0x80808080


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
    together, signs = TOGETHER[tokens], ir.Constant(_VECTOR, [_SIGNS] * _LANES)
    starts = [builder.add(rows, builder.mul(stride, _WORD(row))) for row in range(together)]
    lines = [builder.add(digits, builder.mul(length, _WORD(i))) for i in range(tokens * DIGITS)]
    zero = ir.Constant(_VECTOR, None)
    held = [[cgutils.alloca_once_value(builder, zero) for _ in lines] for _ in starts]

    def step(at, load):
        parts = [_vector(builder, builder.add(line, at)) for line in lines]
        for start, places in zip(starts, held, strict=True):
            place = builder.add(start, at)
            emit_prefetch(builder, builder.add(place, builder.mul(stride, _WORD(together))))  # of the rows that follow
            weights = builder.xor(load(place), signs)
            for part, place in zip(parts, places, strict=True):
                builder.store(_dot4(builder, builder.load(place), weights, part), place)

    whole = builder.udiv(entries, _WORD(STEP))
    with cgutils.for_range(builder, whole) as loop:
        step(builder.mul(loop.index, _WORD(STEP)), lambda address: _vector(builder, address))
    done = builder.mul(whole, _WORD(STEP))
    rest = builder.udiv(builder.sub(entries, done), _WORD(_WIDTH))
    with builder.if_then(builder.icmp_unsigned(">", rest, _WORD(0))):
        mask = builder.icmp_unsigned("<", ir.Constant(_VECTOR, list(range(_LANES))), _splat(builder, rest))
        step(done, lambda address: _some(builder, address, mask))
    add = builder.module.declare_intrinsic("llvm.vector.reduce.add.v16i32", (), ir.FunctionType(_INT, [_VECTOR]))
    for i, place in enumerate(place for places in held for place in places):
        target = builder.inttoptr(builder.add(sums, _WORD(i * _WIDTH)), _INT.as_pointer())
        builder.store(builder.call(add, [builder.load(place)]), target, align=1)


def _vector(builder, address):
    return builder.load(builder.inttoptr(address, _VECTOR.as_pointer()), align=1)


def _some(builder, address, mask):
    """The words under a mask, zeros elsewhere; no byte beyond is read."""
    pointer = builder.inttoptr(address, _VECTOR.as_pointer())
    of = ir.FunctionType(_VECTOR, [pointer.type, _INT, _MASK, _VECTOR])
    load = builder.module.declare_intrinsic("llvm.masked.load.v16i32.p0", (), of)
    return builder.call(load, [pointer, _INT(1), mask, ir.Constant(_VECTOR, None)])


def _splat(builder, word):
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), builder.trunc(word, _INT), _INT(0))
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_VECTOR, None))


def _dot4(builder, sums, unsigned, signed):
    of = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    dot = builder.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), of)
    return builder.call(dot, [sums, unsigned, signed])
