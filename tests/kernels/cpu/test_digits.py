"""Words decoded in bytes: every code they take, every class of small ones, on every kind of processor."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.e8.code import MOST_MULTIPLIERS, NestedCode, row_bytes, smallest_word
from nestquant_cli.kernels.cpu.digits import FACTOR, INVERSE, MOST_BITS, SHIFT
from nestquant_cli.kernels.cpu.e8 import OPTIONS
from nestquant_cli.kernels.cpu.points import MOST_SIDE
from nestquant_cli.kernels.cpu.words import decode_lanes
from nestquant_cli.kernels.device_kernels import of_family

ROOT = Path(__file__).resolve().parents[3]
REFERENCE, CPU = of_family("reference"), of_family("cpu")
CODES = st.integers(2, MOST_SIDE + 3).flatmap(
    lambda q: st.tuples(st.just(q), st.integers(1, 9) | st.just(MOST_MULTIPLIERS), st.integers(0, 40), st.booleans())
)


def same(packed: Tensor, entries: int, code: NestedCode) -> bool:
    return torch.equal(CPU.unpack(packed, entries, code), REFERENCE.unpack(packed, entries, code))


@pytest.mark.parametrize("q", range(2, MOST_SIDE + 1))
def test_products_with_inverses_divide(q: int) -> None:
    x = np.arange(q**4, dtype=np.int64)
    assert FACTOR[q] < 1 << 16
    assert np.array_equal(x * FACTOR[q] >> 16 >> SHIFT[q], x // q)
    words = np.concatenate([np.arange(1 << 12), (1 << MOST_BITS) - 1 - np.arange(1 << 12)])
    edges = q**4 * np.random.default_rng(q).integers(0, (1 << MOST_BITS) // q**4, 1 << 12)
    for numbers in (words, edges, edges + q**4 - 1):
        less = numbers // q**4 - (numbers * INVERSE[q] >> MOST_BITS)
        assert less.min() >= 0 and less.max() <= 1


@pytest.mark.parametrize("q", [2, 3, 4])
def test_every_class(q: int) -> None:
    code = NestedCode(q=q, multipliers=(1, 2), word_bits=smallest_word(q, 2))
    words = np.arange(2 * q**8, dtype="<u8")
    bits = (words[:, None] >> np.arange(code.word_bits, dtype=np.uint64)) & 1
    packed = np.packbits(bits.astype(np.uint8).reshape(1, -1), bitorder="little")
    assert same(torch.from_numpy(packed)[None], 8 * len(words), code)


@settings(deadline=None, max_examples=60)
@given(of=CODES, blocks=st.integers(1, 150), seed=st.integers(0, 1 << 30))
def test_any_code_and_any_bytes(of: tuple[int, int, int, bool], blocks: int, seed: int) -> None:
    q, k, more, wide = of
    code = NestedCode(
        q=q,
        multipliers=tuple(range(1 + seed % 3, 1 + seed % 3 + k)),
        word_bits=min(64, smallest_word(q, k) + more),
        limit=32767 if wide or k > 100 else 127,
    )
    size = row_bytes(8 * blocks, code.word_bits)
    packed = torch.randint(0, 256, (3, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed[2] = 255
    assert same(packed, 8 * blocks, code)


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="instructions of AVX2 are looked for")
def test_the_compiler_finds_the_instructions() -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "cache"}
    compiled = numba.njit(**options)(decode_lanes.py_func)
    integers = ", ".join(["int64"] * 6)
    compiled.compile(f"void(uint8[::1], {integers}, float32[::1], uint64[::1], float32[::1])")
    (assembly,) = compiled.inspect_asm().values()
    for name, least in (("vpmulhuw", 12), ("vpmuludq", 16), ("vpminub", 20), ("vpmaxub", 7), ("vpabsb", 7)):
        assert len(re.findall(rf"^\s+{name}\s", assembly, re.M)) >= least, name


def digest(family: str) -> str:
    """Of the integers that a family of kernels decodes from random words."""
    found = hashlib.sha256()
    for q, multipliers, bits in ((13, (3, 4, 5, 6, 9), 32), (15, (2,), 32), (8, (1, 2, 5), 26)):
        code = NestedCode(q=q, multipliers=multipliers, word_bits=bits)
        shape = 2, row_bytes(8 * 3000, bits)
        packed = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(q))
        found.update(of_family(family).unpack(packed, 8 * 3000, code).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="compiled for processors with AVX2")
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_other_processors(processor: str, tmp_path: Path) -> None:
    """The same program compiled for the least of x86-64, and for AVX2."""
    target = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    program = f"from {__name__} import digest; print(digest('cpu'))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | target, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest("reference")]
