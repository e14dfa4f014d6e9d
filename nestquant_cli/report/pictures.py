"""Draws the pictures of a report as PNG."""

import io
import logging
from typing import Any

from .page_data import PageData

logger = logging.getLogger("nestquant")

_SIZE = (9.0, 3.6)  # inches
_DPI = 110


def draw(data: PageData) -> dict[str, bytes]:
    """Draws the pictures of a report page.

    Returns:
        PNG files by name; empty, with a warning in the log, if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no pictures: matplotlib is not installed (pip install 'nestquant[plots]')")
        return {}
    pictures = {}
    for name, paint in (("errors", _errors), ("bits", _bits), ("betas", _betas), ("perplexity", _perplexity)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        if paint(data, figure.add_subplot()):
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=_DPI)
            pictures[f"{name}.png"] = stream.getvalue()
    return pictures


def _errors(data: PageData, axes: Any) -> bool:
    for key, label in (("relative_error", "weights"), ("hessian_error", "outputs, on calibration text")):
        axes.plot(data.layer_errors(key), marker="o", markersize=4, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("relative squared error")
    axes.set_title("Error of each layer, mean over its matrices")
    axes.legend(fontsize="small")
    return _over_layers(axes)


def _bits(data: PageData, axes: Any) -> bool:
    bits = data.layer_bits()
    axes.bar(range(len(bits)), bits, color="C2")
    axes.set_ylabel("bits per weight")
    axes.set_title("Bits of each layer: words and scales")
    return _over_layers(axes)


def _over_layers(axes: Any) -> bool:
    axes.set_xlabel("decoder layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return True


def _betas(data: PageData, axes: Any) -> bool:
    shares = data.betas()
    for index in range(max(map(len, shares.values()), default=0)):
        heights = [share[index] if index < len(share) else 0.0 for share in shares.values()]
        below = [sum(share[:index]) for share in shares.values()]
        axes.bar(list(shares), heights, bottom=below, label=f"β {index + 1}")
    axes.set_ylabel("share of blocks")
    axes.set_title("Scales in use, from the smallest β to the largest")
    axes.legend(fontsize="small", ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.tick_params(axis="x", labelsize="small")
    return bool(shares)


def _perplexity(data: PageData, axes: Any) -> bool:
    if data.scores is None:
        return False
    scores = data.scores.scores
    values = [scores.baseline_perplexity or 0.0, scores.perplexity]
    bars = axes.barh(["original", "quantized"], values, color=["grey", "C0"])
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.set_xlim(0, 1.15 * max(values))
    axes.invert_yaxis()
    axes.set_xlabel("perplexity")
    axes.set_title(f"KL divergence {scores.kl_divergence:.4f} nats, top-1 agreement {scores.top1_agreement:.4f}")
    return True
