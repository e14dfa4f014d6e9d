"""Which instructions for int8 products the compiler of the kernels may use on this processor.

Compiled loops hold the code for all of them and get the kind as an argument. Code for instructions that the processor
lacks is left out when a loop is compiled (`offers`), and never reached.
"""

from functools import lru_cache
from typing import Any

import torch
from numba.core.registry import cpu_target

PLAIN, VNNI, AMX = range(3)  # ascending in speed; all give the same sums, to the bit

_VNNI = ("avx512f", "avx512bw", "avx512vnni")
_AMX = ("amx-tile", "amx-int8")


@lru_cache(maxsize=1)
def kind() -> int:
    """The fastest kind that the processor, the compiler and the operating system allow."""
    codegen = cpu_target.target_context.codegen()
    if _has(codegen, _AMX) and torch.cpu._init_amx():  # asks Linux to let this process have the tiles
        return AMX
    return VNNI if _has(codegen, _VNNI) else PLAIN


def offers(context: Any, kind: int) -> bool:
    """Whether code that is compiled in a context may have the instructions of a kind."""
    return has(context, _AMX if kind == AMX else _VNNI)


def has(context: Any, features: tuple[str, ...]) -> bool:
    """Whether code that is compiled in a context may have instructions, named as LLVM does."""
    return _has(context.codegen(), features)


def _has(codegen: Any, wanted: tuple[str, ...]) -> bool:
    features = str(codegen.magic_tuple()[2]).split(",")
    return all(f"+{name}" in features for name in wanted)
