"""The sums of `amx` by VNNI instructions, and in plain loops on processors without them. Compiled by Numba."""

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .amx import ROWS, STEP, TILE, TOKENS
from .e8 import OPTIONS
from .instructions import VNNI, offers
from .jit import njit
from .lanes import splat
from .pointers import int8_at, int32_at
from .square import INTS, constant, put, vector

_FEW = 8  # rows whose sums, two vectors each, stay in registers
_GROUP = 4  # entries that an instruction adds up
_INT, _WORD = ir.IntType(32), ir.IntType(64)
SIGNS = constant(INTS, -0x7F7F7F80)  # 0x80808080: turns four signed bytes into unsigned ones that are 128 larger
_ONES = 0x01010101


@njit(**OPTIONS)
def vnni_sums(rows, stride, count, tokens, steps, entries, sums):
    """As `amx.amx_sums`, for entries that lie one after another.

    Args:
        rows: address of the first of ROWS rows of int8.
        stride: bytes from a row to the next.
        count: how many rows there are; the sums of the others are not filled.
        tokens, steps, sums: as there.
        entries: of a row.
    """
    for first in range(0, count, _FEW):
        if count - first >= _FEW:
            _eight(rows + first * stride, stride, tokens, tokens + steps * TILE, entries, sums + first * STEP)
        else:
            plain_sums(rows + first * stride, stride, count - first, tokens, steps, entries, sums + first * STEP)


@intrinsic
def _eight(typingctx, rows, stride, high, low, entries, sums):
    """The sums of _FEW rows, in registers.

    The instruction multiplies unsigned with signed bytes. Digits of tokens are made 128 larger, and 128 times the sum
    of each row is taken off in the end.
    """

    def codegen(context, builder, signature, arguments):
        if offers(context, VNNI):
            _emit_eight(builder, *arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


def _emit_eight(builder, rows, stride, high, low, entries, sums):
    zero = constant(INTS, 0)
    starts = [builder.add(rows, builder.mul(stride, _WORD(row))) for row in range(_FEW)]
    held = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(_FEW)]
    with cgutils.for_range(builder, builder.udiv(entries, _WORD(_GROUP))) as loop:
        at = builder.mul(loop.index, _WORD(STEP))
        digits = [builder.xor(vector(builder, builder.add(each, at), INTS), SIGNS) for each in (high, low)]
        for row, start in enumerate(starts):
            four = _four(builder, builder.add(start, builder.mul(loop.index, _WORD(_GROUP))))
            for digit, place in zip(digits, held[row], strict=True):
                builder.store(dot4(builder, builder.load(place), digit, four), place)
    for row, start in enumerate(starts):
        over = splat(builder, builder.shl(_row_sum(builder, start, entries), _INT(7)), INTS)
        for digit, place in enumerate(held[row]):
            put(builder, builder.sub(builder.load(place), over), builder.add(sums, _WORD((digit * ROWS + row) * STEP)))


def _row_sum(builder, start, entries):
    """Σ of the entries of a row, from STEP at a time and then _GROUP at a time."""
    held = cgutils.alloca_once_value(builder, constant(INTS, 0))
    ones, first = constant(INTS, _ONES), ir.Constant(INTS, [_ONES] + [0] * (TOKENS - 1))
    whole = builder.udiv(entries, _WORD(STEP))
    with cgutils.for_range(builder, whole) as loop:
        part = vector(builder, builder.add(start, builder.mul(loop.index, _WORD(STEP))), INTS)
        builder.store(dot4(builder, builder.load(held), ones, part), held)
    done = builder.mul(whole, _WORD(STEP))
    with cgutils.for_range(builder, builder.udiv(builder.sub(entries, done), _WORD(_GROUP))) as loop:
        place = builder.add(builder.add(start, done), builder.mul(loop.index, _WORD(_GROUP)))
        builder.store(dot4(builder, builder.load(held), first, _four(builder, place)), held)
    return lanes_sum(builder, builder.load(held))


def _four(builder, address):
    """Four bytes of a row, in every lane."""
    return splat(builder, builder.load(builder.inttoptr(address, _INT.as_pointer()), align=1), INTS)


def dot4(builder, sums, unsigned, signed):
    """sums + Σ of four products of bytes in each lane."""
    of = ir.FunctionType(INTS, [INTS] * 3)
    dot = builder.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), of)
    return builder.call(dot, [sums, unsigned, signed])


def lanes_sum(builder, values):
    """Σ of the lanes."""
    add = builder.module.declare_intrinsic("llvm.vector.reduce.add.v16i32", (), ir.FunctionType(_INT, [INTS]))
    return builder.call(add, [values])


@njit(**OPTIONS)
def plain_sums(rows, stride, count, tokens, steps, entries, sums):
    """As `vnni_sums`."""
    digits = carray(int8_at(tokens), (2, steps * TILE))
    filled = carray(int32_at(sums), (2, ROWS, TOKENS))
    for row in range(count):
        weights = carray(int8_at(rows + row * stride), (entries,))
        for digit in range(2):
            line = filled[digit, row]
            line[:] = 0
            for i in range(entries):
                weight = types.int32(weights[i])
                part = digits[digit, i // _GROUP * STEP + i % _GROUP :]
                for lane in range(TOKENS):
                    line[lane] += weight * types.int32(part[_GROUP * lane])
