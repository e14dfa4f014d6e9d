"""Addresses as pointers that `numba.carray` makes arrays of. Compiled by Numba."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _at(kind, pointed):
    """Codegen of a cast of an address to a pointer to a type of Numba, which LLVM calls `pointed`."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], pointed.as_pointer())

    return types.CPointer(kind)(types.int64), codegen


@intrinsic
def int8_at(typingctx, address):
    """An address (int64) as a pointer to int8."""
    return _at(types.int8, ir.IntType(8))


@intrinsic
def uint16_at(typingctx, address):
    """An address (int64) as a pointer to uint16."""
    return _at(types.uint16, ir.IntType(16))


@intrinsic
def int32_at(typingctx, address):
    """An address (int64) as a pointer to int32."""
    return _at(types.int32, ir.IntType(32))


@intrinsic
def float32_at(typingctx, address):
    """An address (int64) as a pointer to float32."""
    return _at(types.float32, ir.FloatType())
