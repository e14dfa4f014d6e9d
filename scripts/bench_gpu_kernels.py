"""Checks and times the Triton kernels on a CUDA device against bf16 F.linear, on the layers of Llama-3-8B, in one run.

    python scripts/bench_gpu_kernels.py [--bits 4] [--tokens 1,16,64,2048] [--output FILE.json]

Every kernel is first compared with the torch reference on new random inputs. Each result is the median of many calls.
The second-level cache is emptied between calls, as the other layers of a model empty it. `bandwidth` is that of a copy;
`of copy` is the fraction of it that reading the packed weight reaches.
"""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import SAMPLE_BLOCKS, fit_scales
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.reference import nested as reference
from nestquant_cli.storage.files import write_json

# name: (rows, entries) of the weight
LAYERS = {"k_proj": (1024, 4096), "q_proj": (4096, 4096), "gate_proj": (14336, 4096), "down_proj": (4096, 14336)}
CHECKED_ROWS = 64  # the reference is slow
Timer = Callable[[Callable[[], object]], float]


def main() -> None:
    """Checks and measures every layer, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=float, default=4.0, help="bits of the codes, 2 to 4")
    parser.add_argument("--tokens", default="1,16,64,2048")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    console = Console()
    if not torch.cuda.is_available():
        console.print("no CUDA device: nothing to measure")
        return
    from triton.testing import do_bench

    def timer(function: Callable[[], object]) -> float:
        return float(do_bench(function, return_mode="median"))

    torch.manual_seed(0)
    device = torch.device("cuda")
    scaled = fit_scales(torch.randn(SAMPLE_BLOCKS, 8), shape_for_bits(options.bits))
    source = torch.empty(2**28, dtype=torch.int8, device=device)
    bandwidth = 2 * source.numel() / timer(source.clone) / 1e6  # GB/s
    results = []
    for name, (rows, entries) in LAYERS.items():
        for tokens in (int(part) for part in options.tokens.split(",")):
            for step, milliseconds, linear in measure(rows, entries, tokens, scaled, device, timer):
                packed = rows * entries * scaled.code.bits / 8 / milliseconds / 1e6 / bandwidth
                times = {"milliseconds": milliseconds, "bf16": linear, "ratio": linear / milliseconds}
                results.append({"layer": name, "tokens": tokens, "step": step, **times, "of_copy": packed})
    machine = f"{torch.cuda.get_device_name()}, copy {bandwidth:.0f} GB/s"
    console.print(table(results, f"{options.bits:g} bits, {machine}"))
    if options.output:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": machine}
        write_json(options.output, {**versions, "multipliers": scaled.code.multipliers, "results": results})


def measure(
    rows: int, entries: int, tokens: int, scaled: ScaledCode, device: torch.device, timer: Timer
) -> list[tuple[str, float, float]]:
    """Checks and times the kernels for a number of tokens: (step, milliseconds, milliseconds of F.linear) of each."""
    from nestquant_cli.kernels.gpu import nested as gpu
    from nestquant_cli.kernels.gpu import product as gpu_product

    code = scaled.code
    weight = torch.randn(rows, entries, device=device)
    row_scale = scaled.row_scale(weight).bfloat16()
    v, index, _ = gpu.quantize(weight, row_scale.float(), code)
    words = gpu.pack(v, index, code)
    x = torch.randn(tokens, entries, device=device)
    scale_a = scaled.row_scale(x)
    a, _, _ = gpu.encode(x, scale_a, code)
    brain, halves = weight.bfloat16(), x.bfloat16()
    check(weight, row_scale, v, index, words, x, a, scale_a, scaled)
    linear = timer(lambda: F.linear(halves, brain))
    steps: dict[str, Callable[[], object]] = {
        "encode tokens": lambda: gpu.encode(x, scale_a, code),
        "decode to int8": lambda: gpu.unpack(words, entries, code),
        "W4A4 product": lambda: gpu.product(words, row_scale, a, scale_a, code),
    }
    if tokens > 16 and tokens % 8 == 0 and device.type == "cuda":
        steps["int8 product of torch"] = lambda: torch._int_mm(a, v.t())
    if tokens <= gpu_product.FEW_TOKENS:
        steps["W4 product, few tokens"] = lambda: gpu.product_one(words, row_scale, x, code)
    steps["W4 product, tiles"] = lambda: gpu.product_many(words, row_scale, halves, code)
    return [(step, timer(function), linear) for step, function in steps.items()]


def check(
    weight: Tensor,
    row_scale: Tensor,
    v: Tensor,
    index: Tensor,
    words: Tensor,
    x: Tensor,
    a: Tensor,
    scale_a: Tensor,
    scaled: ScaledCode,
) -> None:
    """Raises AssertionError if the kernels differ from the reference on some of the rows."""
    from nestquant_cli.kernels.gpu import nested as gpu
    from nestquant_cli.kernels.gpu import product as gpu_product

    code, few = scaled.code, slice(0, CHECKED_ROWS)
    assert torch.equal(words[few], reference.pack(v[few], index[few], code)), "pack"
    assert torch.equal(reference.unpack(words[few], weight.shape[1], code), v[few]), "reference.unpack"
    assert torch.equal(gpu.unpack(words, weight.shape[1], code), v), "unpack"
    expected = reference.quantize(weight[few], row_scale[few].float(), code)[0]
    errors = [(weight[few] - row_scale[few, None].float() * w).square().mean() for w in (v[few], expected)]
    torch.testing.assert_close(*errors, rtol=1e-4, atol=0)
    sums = (a.double() @ v[few].double().T).float()
    y = gpu.product(words, row_scale, a, scale_a, code)[:, few]
    assert torch.equal(y, sums * scale_a[:, None] * row_scale[few].float()), "product"
    exact = x.double() @ v[few].double().T * row_scale[few].double()
    products = {"product_many": (gpu.product_many(words, row_scale, x.bfloat16(), code), 1e-2)}
    if x.shape[0] <= gpu_product.FEW_TOKENS:
        products["product_one"] = gpu.product_one(words, row_scale, x, code), 1e-5
    for name, (got, tolerance) in products.items():
        assert (got[:, few] - exact).norm() <= tolerance * exact.norm(), name


def table(results: list[dict[str, object]], title: str) -> Table:
    """The results as a table, with the ratio to F.linear: above 1 is faster."""
    shown = Table("layer", "tokens", "step", "ms", "bf16 ms", "ratio", "of copy", title=title)
    for row in results:
        figures = (f"{float(str(row[key])):.3f}" for key in ("milliseconds", "bf16"))
        ratios = f"{float(str(row['ratio'])):.2f}", f"{float(str(row['of_copy'])):.0%}"
        shown.add_row(str(row["layer"]), str(row["tokens"]), str(row["step"]), *figures, *ratios)
    return shown


if __name__ == "__main__":
    main()
