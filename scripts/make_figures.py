"""Draws the pictures of docs/how-it-works.md and docs/comparison.md into docs/figures.

python scripts/make_figures.py [--model demo] [--output docs/figures]

Three pictures are computed: errors on a Gaussian, the cells of a nested code, and an input of a model before and after
its rotation. The fourth draws the table of docs/quality.md. scripts/trace_walk.py draws those of docs/architecture.md.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from nestquant_cli.calibration.text import load_text
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import fit_scales
from nestquant_cli.e8.rates import BEST
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.e8.voronoi import gauge
from nestquant_cli.kernels import for_device
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.modules.inputs import padded_size
from nestquant_cli.rotation.transform import rotation
from nestquant_cli.storage.files import replacing

ROOT = Path(__file__).resolve().parents[1]
DPI = 110
BLOCKS = 1 << 15  # Gaussian blocks of eight
TOKENS = 256  # tokens of text whose inputs are drawn
REFERENCE = "reference: Q4_1 file, de-quantized to bfloat16"


def main(arguments: list[str] | None = None) -> None:
    """Draws all four pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model whose input is drawn")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args(arguments)
    draw(options.output / "error-and-bits.png", (6.4, 4.2), errors)
    draw(options.output / "nested-code.png", (10.0, 4.4), cells)
    draw(options.output / "rotation.png", (10.0, 3.8), lambda figure: turned(figure, options.model))
    draw(options.output / "perplexity-and-bits.png", (6.4, 4.2), perplexities)


def draw(path: Path, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
    """Draws one picture; the file is replaced when it is complete."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    print(f"{path}: {path.stat().st_size:,} bytes")


def uniform_error(bits: int) -> float:
    """Mean squared error on a unit Gaussian of the best uniform grid with 2^bits points, symmetric about 0."""
    x = np.linspace(0, 9, 90_001)
    weight = np.exp(-x * x / 2) * (2 / math.sqrt(2 * math.pi)) * (x[1] - x[0])
    weight[0] /= 2
    half = 1 << (bits - 1)
    steps = np.linspace(0.5, 12, 1151) / half  # one of these is close enough to the best
    return min(float((weight * (x - s * (np.clip(np.floor(x / s), 0, half - 1) + 0.5)) ** 2).sum()) for s in steps)


def errors(figure: Any) -> None:
    """Error and bits on a Gaussian: nested codes, uniform grids, and the bound."""
    axes = figure.add_subplot()
    nested = {words / 8: error for words, (_, _, _, error) in BEST.items() if words <= 48}
    whole = range(2, 7)
    rates = np.linspace(2, 6, 50)
    axes.plot(whole, [uniform_error(bits) for bits in whole], "s-", color="C3", label="best uniform grid, no scales")
    axes.plot(list(nested), list(nested.values()), ".-", color="C0", label="nested E8 code, a scale index in each word")
    axes.plot(rates, 4.0**-rates, "--", color="grey", label="rate–distortion bound, 4^(−bits)")
    axes.axvline(34 / 8, color="C0", alpha=0.3, linewidth=1)
    axes.annotate("entries fit int8", (34 / 8, 0.06), ha="right", xytext=(-4, 0), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_xlabel("bits an entry")
    axes.set_ylabel("mean squared error an entry")
    axes.set_title("Rounding a unit Gaussian")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def cells(figure: Any) -> None:
    """The cells of the 4-bit code in a plane through the origin, and the size of Gaussian blocks."""
    blocks = torch.randn(BLOCKS, 8, generator=torch.Generator().manual_seed(0))
    scaled = fit_scales(blocks[:4096], shape_for_bits(4))
    colours = [f"C{index}" for index in range(scaled.code.k)]
    left, right = figure.subplots(1, 2)
    _slice(left, scaled, colours)
    reach, used = gauge(blocks).numpy(), _used(blocks, scaled).numpy()
    edges = np.linspace(0, 9, 91)
    counts = [reach[used == index] for index in range(scaled.code.k)]
    sides = [beta * scaled.code.q for beta in scaled.betas]
    shares = [f"β·q = {side:.1f}: {len(own) / len(reach):.1%}" for side, own in zip(sides, counts, strict=True)]
    right.hist(counts, bins=edges, stacked=True, color=colours, label=shares)
    for side, colour in zip(sides, colours, strict=True):
        right.axvline(side, color=colour, linestyle=":", linewidth=1.2)
    right.set_xlabel("reach of a Gaussian block: the smallest β·q whose cell holds it")
    right.set_ylabel("blocks")
    right.set_title("which cell they are rounded in: the one of least error")
    right.legend(fontsize="small")


def _used(blocks: Tensor, scaled: ScaledCode) -> Tensor:
    scale = torch.full((len(blocks),), scaled.unit)
    index: Tensor = for_device(blocks.device).quantize(blocks, scale, scaled.code)[1]
    return index[:, 0]


def _slice(axes: Any, scaled: ScaledCode, colours: list[str]) -> None:
    """The plane of the first two coordinates: cells, and the points of each outside the next smaller one."""
    turn = torch.linspace(0, 2 * math.pi, 721)
    ring = torch.zeros(len(turn), 8)
    ring[:, 0], ring[:, 1] = turn.cos(), turn.sin()
    cell = ring / gauge(ring)[:, None]  # the boundary of the Voronoi cell of E8 in this plane
    smaller = (0.0, *scaled.betas)
    for beta, within, colour in reversed(list(zip(scaled.betas, smaller, colours, strict=False))):
        border = cell * beta * scaled.code.q
        axes.fill(border[:, 0], border[:, 1], color=colour, alpha=0.16)
        axes.plot(border[:, 0], border[:, 1], color=colour, linewidth=1)
        axes.scatter(*_points(beta, within, scaled.code.q), color=colour, s=4, linewidths=0)
    for radius in (1, 2, 3):
        axes.plot(radius * turn.cos(), radius * turn.sin(), color="black", linewidth=0.6, linestyle="--", alpha=0.6)
    axes.set_aspect("equal")
    axes.set_title(f"cells in a plane, q = {scaled.code.q} (dashed: 1, 2, 3 σ)")


def _points(beta: float, within: float, q: int) -> tuple[Tensor, Tensor]:
    """Points (x, y, 0, …, 0) of β·E8, whole and with an even sum, inside β·q·V and not inside within·q·V."""
    whole = torch.arange(-q, q + 1, dtype=torch.float32)
    grid = torch.cartesian_prod(whole, whole)
    grid = grid[grid.sum(1) % 2 == 0]
    reach = gauge(nn.functional.pad(grid, (0, 6)))
    grid = grid[(reach < q) & (reach * beta >= within * q)] * beta
    return grid[:, 0], grid[:, 1]


def turned(figure: Any, model: str) -> None:
    """The input of a model with the heaviest tails, in units of each token's root mean square."""
    name, x = _heaviest(model)
    width = padded_size(x.shape[1])
    y = rotation(width, 0).apply(nn.functional.pad(x, (0, width - x.shape[1])))
    for axes, values, title in zip(figure.subplots(1, 2, sharey=True), (x, y), ("before", "after"), strict=True):
        entries = (values / values.square().mean(1, keepdim=True).sqrt()).flatten().numpy()
        largest = float(np.abs(entries).max())
        edges = np.linspace(-largest, largest, 121)
        axes.hist(entries, bins=edges, density=True, color="C0")
        axes.plot(edges, np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi), color="C3", linewidth=1, label="Gaussian")
        kurtosis = float((entries**4).mean() / (entries**2).mean() ** 2)
        axes.set_title(f"{title}: largest {largest:.1f} σ, kurtosis {kurtosis:.1f}")
        axes.set_xlabel("entry / root mean square of its token")
        axes.set_yscale("log")
        axes.set_ylim(1e-7, 30)
        axes.legend(fontsize="small")
    figure.suptitle(f"input of {name}")


def _heaviest(model: str) -> tuple[str, Tensor]:
    """Name and input (tokens, features) float32 of the Linear with the largest kurtosis; without the first token."""
    source = resolve(model)
    ids = load_tokenizer(source)(load_text("demo", "test").text[: TOKENS * 16])["input_ids"][:TOKENS]
    loaded, found = load_model(source, torch.float32), {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0][0, 1:].float()
            rows = x / x.square().mean(1, keepdim=True).sqrt()
            found[name] = float(rows.pow(4).mean()), x

        return hook

    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and module is not loaded.get_output_embeddings():
            module.register_forward_pre_hook(keep(name))
    with torch.inference_mode():
        loaded(input_ids=torch.tensor([ids]), use_cache=False)
    name = max(found, key=lambda each: found[each][0])
    return name, found[name][1].clone()


def measured() -> list[tuple[str, float, float]]:
    """Recipe, real bits and perplexity of each row in the first table of results in docs/quality.md."""
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    text = page.partition("## Measured")[2].partition("\n    nestquant compare")[0]
    rows = re.findall(r"^\| (?:`([\w-]+)\.yaml`|(reference)[^|]*) \| ([\d.]+) \| ([\d.]+) ±", text, re.M)
    return [(name or plain, float(bits), float(perplexity)) for name, plain, bits, perplexity in rows]


def perplexities(figure: Any) -> None:
    """Perplexity against real bits per weight; recipes that also round activations and cache have another mark."""
    axes = figure.add_subplot()
    for name, bits, perplexity in measured():
        if name == "reference":
            axes.axhline(perplexity, color="grey", linestyle="--", linewidth=1)
            axes.annotate(REFERENCE, (4.7, perplexity), va="top", ha="right", fontsize="small", color="grey")
            continue
        ours, all_parts = name.startswith("w"), name.endswith("a4kv4")
        axes.scatter(bits, perplexity, marker="D" if all_parts else "o", color="C0" if ours else "C3")
        axes.annotate(name, (bits, perplexity), xytext=(6, 3), textcoords="offset points", fontsize="small")
    axes.scatter([], [], marker="o", color="black", label="weights alone")
    axes.scatter([], [], marker="D", color="black", label="weights, activations and KV cache")
    axes.set_yscale("log")
    axes.set_yticks([20, 25, 30, 40], ["20", "25", "30", "40"])
    axes.minorticks_off()
    axes.set_xlim(2.9, 4.75)
    axes.set_xlabel("real bits a weight, from the bytes on disk")
    axes.set_ylabel("perplexity")
    axes.set_title("SmolLM2-135M-Instruct (Q4_1 file), wikitext-2, 10 windows")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


if __name__ == "__main__":
    main()
