"""Times the kernels of this machine's CPU against the torch reference, in one run, on the layers of known models.

    python scripts/bench_kernels.py [--rows 1024] [--bits 4] [--threads N] [--output FILE.json]

`encode` rounds a matrix to the code, `pack` writes its words, `unpack` decodes them. `rotate` compares the fast
transform with a product with the dense matrix. Each result is that of the fastest call: other programs on the machine
only add time, and add more to the slower of two.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import SAMPLE_BLOCKS, fit_scales
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.cpu import nested as cpu
from nestquant_cli.kernels.reference import nested as reference
from nestquant_cli.rotation.transform import rotation
from nestquant_cli.storage.files import write_json

# name: (rows, entries) of the weight
LAYERS = {
    "SmolLM2-135M q_proj": (576, 576),
    "SmolLM2-135M down_proj": (576, 1536),
    "Llama-3-8B q_proj": (4096, 4096),
    "Llama-3-8B down_proj": (4096, 14336),
    "one LDLQ step": (576, 8),
    "one token": (1, 4096),
}
REFERENCE_ENTRIES = 2**18  # the reference is slow, and its speed is the same on fewer rows


def main() -> None:
    """Measures every layer, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="most rows of a layer that are used")
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.4, help="time for each measurement")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    scaled = fit_scales(torch.randn(SAMPLE_BLOCKS, 8), shape_for_bits(options.bits))
    results = []
    for name, (rows, entries) in LAYERS.items():
        shape = min(rows, options.rows), entries
        for step, fast, slow in measure_layer(*shape, scaled, options.seconds):
            speeds = {"kernel": fast, "torch": slow, "ratio": fast / slow}
            results.append({"layer": name, "rows": shape[0], "entries": entries, "step": step, **speeds})
    console = Console()
    console.print(table(results, f"{options.bits:g} bits, {options.threads} threads, million entries/s"))
    if options.output:
        code = {"q": scaled.code.q, "multipliers": scaled.code.multipliers, "word_bits": scaled.code.word_bits}
        machine = {"processor": platform.processor() or platform.machine(), "threads": options.threads}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        unit = "entries/s"
        write_json(options.output, {"code": code, **machine, **versions, "unit": unit, "results": results})


def measure_layer(rows: int, entries: int, scaled: ScaledCode, seconds: float) -> list[tuple[str, float, float]]:
    """Entries per second of each step: (step, kernel, torch)."""
    code = scaled.code
    x = torch.randn(rows, entries)
    scale = scaled.row_scale(x)
    v, index, _ = cpu.quantize(x, scale, code)
    packed = cpu.pack(v, index, code)
    part = max(1, min(rows, REFERENCE_ENTRIES // entries))
    few = x[:part], scale[:part], v[:part], index[:part], packed[:part]
    steps: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("encode", lambda: cpu.quantize(x, scale, code), lambda: reference.quantize(few[0], few[1], code)),
        ("pack", lambda: cpu.pack(v, index, code), lambda: reference.pack(few[2], few[3], code)),
        ("unpack", lambda: cpu.unpack(packed, entries, code), lambda: reference.unpack(few[4], entries, code)),
    ]
    if entries <= 4096:  # a dense matrix of the larger orders takes gigabytes
        turn = rotation(entries, 0)
        dense = turn.matrix().T.contiguous()
        steps.append(("rotate", lambda: turn.apply(x), lambda: few[0] @ dense))
    return [
        (step, rows * entries / least_time(fast, seconds), part * entries / least_time(slow, seconds))
        for step, fast, slow in steps
    ]


def least_time(function: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call, of at least three after one that is not counted."""
    function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def table(results: list[dict[str, object]], title: str) -> Table:
    """The results as a table, with the ratio to the reference."""
    shown = Table(title=title)
    for heading in ("layer", "rows × entries", "step"):
        shown.add_column(heading)
    for heading in ("kernel", "torch", "ratio"):
        shown.add_column(heading, justify="right")
    last = None
    for row in results:
        fast, slow, ratio = (float(str(row[key])) for key in ("kernel", "torch", "ratio"))
        size = f"{row['rows']} × {row['entries']}"
        begin = (str(row["layer"]), size) if row["layer"] != last else ("", "")
        last = row["layer"]
        shown.add_row(*begin, str(row["step"]), f"{fast / 1e6:.1f}", f"{slow / 1e6:.1f}", f"{ratio:.1f}")
    return shown


if __name__ == "__main__":
    main()
