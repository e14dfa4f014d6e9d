"""Sums of int8 products in AMX tiles: 32 rows of a matrix times two tiles of tokens. Compiled by Numba.

A tile of an operand is 16 rows of 64 bytes. The instruction adds up products of four neighbouring bytes, so that rows
of the matrix are used as they lie in memory, and only tokens are laid out for it (`int16`).
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .e8 import OPTIONS
from .instructions import AMX, offers
from .jit import njit
from .prefetch import prefetch

ROWS, TOKENS, STEP = 32, 16, 64  # of a block; STEP entries of a row are multiplied at a time
TILE = TOKENS * STEP  # bytes of a tile
CONFIG = 64  # bytes

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()


def shapes() -> np.ndarray:
    """The configuration of eight tiles of 16 rows of 64 bytes, for `configure`."""
    config = np.zeros(CONFIG, np.uint8)
    config[0] = 1  # the palette
    config[16:32].view(np.uint16)[:] = STEP  # bytes of a row of each tile
    config[48:56] = TOKENS  # rows
    return config


def _instruction(name, takes):
    """A function for an instruction of LLVM; a "tile" is an int that is known when it is compiled, the rest int64."""

    def codegen(context, builder, signature, arguments):
        if offers(context, AMX):
            kinds = {"tile": _BYTE, "address": _POINTER, "stride": _WORD}
            of = ir.FunctionType(ir.VoidType(), [kinds[each] for each in takes])
            function = builder.module.declare_intrinsic(f"llvm.x86.{name}", (), of)
            values = []
            for each, argument, kind in zip(takes, arguments, signature.args, strict=True):
                if each == "tile":
                    values.append(_BYTE(kind.literal_value))
                else:
                    values.append(builder.inttoptr(argument, _POINTER) if each == "address" else argument)
            builder.call(function, values)
        return context.get_dummy_value()

    def typed(*given):
        return types.void(*(kind if each == "tile" else types.int64 for each, kind in zip(takes, given, strict=True)))

    return typed, codegen


_LOAD_CONFIG = _instruction("ldtilecfg", ("address",))
_STORE_CONFIG = _instruction("sttilecfg", ("address",))
_ZERO = _instruction("tilezero", ("tile",))
_LOAD = _instruction("tileloadd64", ("tile", "address", "stride"))
_STORE = _instruction("tilestored64", ("tile", "address", "stride"))
_MULTIPLY = _instruction("tdpbssd", ("tile", "tile", "tile"))


@intrinsic
def configure(typingctx, address):
    """Takes the shapes of this thread's tiles from an address; zeros give the tiles back."""
    return _LOAD_CONFIG[0](address), _LOAD_CONFIG[1]


@intrinsic
def configured(typingctx, address):
    """Writes the shapes of this thread's tiles to an address."""
    return _STORE_CONFIG[0](address), _STORE_CONFIG[1]


@intrinsic(prefer_literal=True)
def _zero(typingctx, tile):
    return _ZERO[0](tile), _ZERO[1]


@intrinsic(prefer_literal=True)
def _load(typingctx, tile, address, stride):
    return _LOAD[0](tile, address, stride), _LOAD[1]


@intrinsic(prefer_literal=True)
def _store(typingctx, tile, address, stride):
    return _STORE[0](tile, address, stride), _STORE[1]


@intrinsic(prefer_literal=True)
def _multiply(typingctx, sums, rows, tokens):
    return _MULTIPLY[0](sums, rows, tokens), _MULTIPLY[1]


@njit(**OPTIONS)
def _ask_ahead(address, stride):
    """Asks for the same bytes of the block of rows that follows."""
    for row in range(ROWS, 2 * ROWS):
        prefetch(address + row * stride)


@njit(**OPTIONS)
def amx_sums(rows, stride, step, tokens, steps, ahead, sums):
    """Sums over all entries of two tiles of tokens: both digits of 16 tokens, or one digit each of 32.

    Args:
        rows: address of the first of ROWS rows of int8.
        stride: bytes from a row to the next.
        step: bytes from STEP entries of a row to the next.
        tokens: address of the tokens: for each of the two `steps` tiles.
        steps: how many tiles.
        ahead: whether to ask for the block of rows that follows.
        sums: address of (2, ROWS, TOKENS) int32, filled.
    """
    other = tokens + steps * TILE
    _zero(0), _zero(1), _zero(2), _zero(3)
    for i in range(steps):
        if ahead:
            _ask_ahead(rows + i * step, stride)
        _load(4, rows + i * step, stride)
        _load(6, tokens + i * TILE, STEP)
        _load(7, other + i * TILE, STEP)
        _load(5, rows + 16 * stride + i * step, stride)
        _multiply(0, 4, 6)
        _multiply(1, 4, 7)
        _multiply(2, 5, 6)
        _multiply(3, 5, 7)
    _store(0, sums, STEP)
    _store(2, sums + TILE, STEP)
    _store(1, sums + 2 * TILE, STEP)
    _store(3, sums + 3 * TILE, STEP)


@njit(**OPTIONS)
def amx_sums_of_one(rows, stride, step, tokens, steps, ahead, sums):
    """As `amx_sums`, of one tile of tokens with one digit: fills (ROWS, TOKENS) int32."""
    _zero(0), _zero(1)
    for i in range(steps):
        if ahead:
            _ask_ahead(rows + i * step, stride)
        _load(4, rows + i * step, stride)
        _load(6, tokens + i * TILE, STEP)
        _load(5, rows + 16 * stride + i * step, stride)
        _multiply(0, 4, 6)
        _multiply(1, 5, 6)
    _store(0, sums, STEP)
    _store(1, sums + TILE, STEP)
