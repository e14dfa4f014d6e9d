"""Loops over lanes compile to vector instructions; one that LLVM unrolls first, or that may have aliases, does not."""

import re

import llvmlite.binding as llvm
import pytest
from numba import njit

from nestquant_cli.kernels.cpu import center as cpu_center
from nestquant_cli.kernels.cpu import e8 as cpu_lattice
from nestquant_cli.kernels.cpu import encode as cpu_encode
from nestquant_cli.kernels.cpu import grid as cpu_grid
from nestquant_cli.kernels.cpu import integers as cpu_integers
from nestquant_cli.kernels.cpu import rotate as cpu_rotate

ROWS = "float32[::1]"
LOOPS = {
    "encoding": (cpu_encode._try, f"void({ROWS}, float32, float32, float32, float32)"),
    "the last factors of a rotation": (cpu_rotate._fours_last_grouped, f"void({ROWS})"),
    "the last factor of 2": (cpu_rotate._pairs_last_grouped, f"void({ROWS})"),
    "a factor of 12": (cpu_rotate._rows_of_12, f"void({ROWS}, {ROWS})"),
    "another factor": (cpu_rotate._rows, f"void({ROWS}, {ROWS}, int64)"),
    "centers": (cpu_center.subtract_from_tile, f"void({ROWS}, {ROWS}, {ROWS})"),
    "largest entries": (cpu_grid._largest, f"void({ROWS}, {ROWS})"),
    "integers of a tile": (cpu_integers._words, f"void({ROWS}, {ROWS}, float32, int32[::1])"),
    "integers of a token": (cpu_integers._words_of_row, f"void({ROWS}, float32, float32, int32[::1])"),
}


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="instructions of AVX2 are looked for")
@pytest.mark.parametrize("loop", LOOPS)
def test_lanes_are_computed_together(loop: str) -> None:
    function, signature = LOOPS[loop]
    options = {name: value for name, value in cpu_lattice.OPTIONS.items() if name != "cache"}
    compiled = njit(**options)(function.py_func)
    compiled.compile(signature)
    (assembly,) = compiled.inspect_asm().values()
    packed = re.findall(r"^\s+v(?:add|sub|mul|div|fn?m(?:add|sub)\d+|max|min|cmp\w*)ps\s", assembly, re.M)
    assert len(packed) >= 8, assembly
