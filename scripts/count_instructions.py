"""Compiles the Triton kernels for an H100, without one, and counts the machine instructions of their inner loops.

    python scripts/count_instructions.py [--bits 4] [--output FILE.json]

The assembler and the disassembler come with Triton. A count is the number of instructions that a thread issues for one
block of eight weights. Instructions of half rate (comparisons, selections, integer logic, minima) occupy their unit for
two cycles. The bounds in docs/kernels.md follow from these counts.
"""

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.gpu import encode as gpu_encode
from nestquant_cli.kernels.gpu import tiles as gpu_tiles
from nestquant_cli.kernels.gpu import words as gpu_words
from nestquant_cli.storage.files import write_json

HOPPER = GPUTarget("cuda", 90, 32)
FULL_RATE = ("FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "IMAD")  # the others share a unit of half the width
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)\S*(.*)$", re.MULTILINE)
WORDS = {"words": "*i32", "multipliers": "*fp32", "last": "i32", "width": "i32"}
TILE = {"scale_a": "*fp32", "row_scale": "*bf16", "y": "*fp32", "tokens": "i32", "rows": "i32", "entries": "i32"}
FACTORS = {"x": "*fp32", "factors": "*fp32", "multipliers": "*fp32", "bounds": "*fp32", "overloads": "*i32", "K": "i32"}
SPREAD = {"x": "*fp32", "row_scale": "*bf16", "sums": "*fp32", "rows": "i32", "blocks": "i32", "steps": "i32"}


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments, its constants, and the blocks per thread in the counted part."""

    kernel: object
    signature: dict[str, str]
    constants: dict[str, int]
    blocks: int
    loop: bool = True


def cases(q: int) -> dict[str, Case]:
    """The kernels to compile, by name, for 32-bit words."""
    code = {"Q": q, "BITS": 32}
    square = {"ROWS": 64, "ENTRIES": 128}
    flat = {"v": "*i8", "blocks": "i32", "size": "i32"}
    encode = {"LIMIT": 127, "Q": q, "STEPS": 32, "TILE": 128}
    return {
        "unpack": Case(gpu_words.unpack_kernel, WORDS | flat, code | {"TILE": 128}, 1, loop=False),
        "quantize, each multiplier": Case(gpu_encode.quantize_kernel, FACTORS | flat | {"index": "*u8"}, encode, 1),
        "product_one": Case(gpu_tiles.dot_kernel, WORDS | SPREAD, code | {"TOKENS": 1, "ROWS": 4, "WORDS": 64}, 2),
        "product, 16 tokens": Case(
            gpu_tiles.packed_tile_kernel, WORDS | TILE | {"a": "*i8"}, code | square | {"TOKENS": 16}, 8
        ),
        "product_many, 16 tokens": Case(
            gpu_tiles.packed_tile_kernel, WORDS | TILE | {"a": "*bf16"}, code | square | {"TOKENS": 16}, 8
        ),
    }


def main() -> None:
    """Counts every case, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=float, default=4.0, help="bits of the codes, up to 4, in a 32-bit word")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = {name: count(case) for name, case in cases(shape_for_bits(options.bits).q).items()}
    table = Table("kernel", "instructions", "half rate", "registers", "spilled", title="for one block, on sm_90")
    for name, row in results.items():
        table.add_row(name, *(f"{value:.0f}" for value in row.values()))
    Console().print(table)
    if options.output:
        write_json(options.output, {"target": "sm_90", "triton": triton.__version__, "results": results})


def count(case: Case) -> dict[str, float]:
    """Instructions per block in the counted part, those of half rate, and registers and spilled bytes per thread."""
    names = case.kernel.arg_names  # type: ignore[attr-defined]
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in case.signature}
    kernel = triton.compile(ASTSource(case.kernel, signature, constants, aligned), target=HOPPER)
    listing, usage = disassemble(kernel.asm["cubin"])
    opcodes = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(listing) if name != "NOP"]
    counted = first_loop(opcodes) if case.loop else [name for _, name, _ in opcodes]
    half = sum(not name.startswith(FULL_RATE) for name in counted)
    registers, stack = (int(value) for value in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    per_block = {"instructions": len(counted) / case.blocks, "half_rate": half / case.blocks}
    return {**per_block, "registers": registers, "spilled": stack}


def first_loop(opcodes: list[tuple[int, str, str]]) -> list[str]:
    """Names of the instructions in the first innermost loop that does more than wait or copy."""
    loops = []
    for at, name, rest in opcodes:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target.group(1), 16) < at:
            loops.append((int(target.group(1), 16), at))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = ([name for at, name, _ in opcodes if begin <= at <= end] for begin, end in sorted(inner))
    return next(body for body in bodies if len(body) > 50)


def disassemble(cubin: bytes) -> tuple[str, str]:
    """The listing of a compiled kernel and its resource usage, as Triton's own tools print them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([str(tools / "cuobjdump"), "-sass", file.name], [str(tools / "cuobjdump"), "-res-usage", file.name])
        listing, usage = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    return listing, usage


if __name__ == "__main__":
    main()
