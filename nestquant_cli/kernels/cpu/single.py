"""Arithmetic whose every step is rounded by itself. Compiled by Numba.

LLVM as Numba sets it up makes one fused multiply-add of a product and a sum wherever they meet, with or without
"contract". Where two loops must give the same bits, a fence stands between them.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT = ir.FloatType()


@intrinsic
def nearest_product(typingctx, a, b):
    """The integer nearest to a·b rounded to float32, ties to even: float32 of two float32."""

    def codegen(context, builder, signature, arguments):
        nearest = builder.module.declare_intrinsic("llvm.rint.f32", (), ir.FunctionType(_FLOAT, [_FLOAT]))
        return builder.call(nearest, [builder.fmul(*arguments)])

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def separate(typingctx, value):
    """The value, float32, which no further operation is fused with."""

    def codegen(context, builder, signature, arguments):
        return emit_separate(builder, arguments[0])

    return types.float32(types.float32), codegen


def emit_separate(builder, value):
    """`separate` of a float32 or a vector of them, for other intrinsics."""
    name = f"v{value.type.count}f32" if isinstance(value.type, ir.VectorType) else "f32"
    of = ir.FunctionType(value.type, [value.type])
    return builder.call(builder.module.declare_intrinsic(f"llvm.arithmetic.fence.{name}", (), of), [value])
