"""Asking for bytes before they are needed. Compiled by Numba.

A processor fetches ahead by itself where bytes are read one after another; not where several rows are read in turns.
With it, the int8 matrices of SmolLM2-135M meet one token in 0.7 of the time.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_TO_READ, _TO_STAY, _DATA = _INT(0), _INT(3), _INT(1)


@intrinsic
def prefetch(typingctx, address):
    """Asks for the line of the cache at an address, which may be any."""

    def codegen(context, builder, signature, arguments):
        emit_prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def emit_prefetch(builder, address):
    """The instruction, for other intrinsics."""
    pointer = builder.inttoptr(address, _BYTE.as_pointer())
    of = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
    builder.call(builder.module.declare_intrinsic("llvm.prefetch.p0", (), of), [pointer, _TO_READ, _TO_STAY, _DATA])
