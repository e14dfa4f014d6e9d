"""Pictures of a comparison: perplexity against real bits, and output error layer by layer."""

import logging
from pathlib import Path
from typing import Any

from ..storage.files import replacing
from .result import Comparison
from .tables import codes

logger = logging.getLogger("nestquant")

PERPLEXITY, ERRORS = "perplexity.png", "layer_errors.png"
_MARKERS = "os^Dvp*hX"  # marker of each set of bits, such as w4 and w4a4kv4
_SIZE = (10.0, 5.0)  # inches
_WIDE = 3  # ratio of the largest perplexity to the reference above which the axis is logarithmic
_DPI = 150


def draw(comparison: Comparison, folder: Path) -> list[str]:
    """Writes the pictures of a comparison.

    Args:
        comparison: the rows of the comparison, the reference first.
        folder: folder that gets the PNG files.

    Returns:
        names of the files; none, and a warning in the log, where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plots: matplotlib is not installed (pip install 'nestquant[plots]')")
        return []
    made = []
    for name, paint in ((PERPLEXITY, _perplexity), (ERRORS, _errors)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        if paint(comparison, figure.add_subplot()):
            figure.legend(loc="outside right upper", fontsize="small")
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, format="png", dpi=_DPI)
            made.append(name)
    return made


def _perplexity(comparison: Comparison, axes: Any) -> bool:
    original, rows = comparison.rows[0], [row for row in comparison.rows[1:] if row.bits_per_weight is not None]
    kinds = list(dict.fromkeys(codes(row) for row in rows))
    for number, row in enumerate(rows):
        marker = _MARKERS[kinds.index(codes(row)) % len(_MARKERS)]
        axes.errorbar(
            row.bits_per_weight,
            row.perplexity,
            yerr=row.gap_standard_error,
            fmt=marker,
            color=f"C{number % 10}",
            markersize=7,
            capsize=3,
            label=row.name,
        )
    axes.axhline(original.perplexity, color="grey", linestyle="--", linewidth=1, label="reference")
    axes.set_xlabel("bits per quantized weight, from the bytes on disk")
    axes.set_ylabel("perplexity (bars: standard error of the gap)")
    axes.set_title(f"{comparison.model}: {comparison.protocol['dataset']}, {comparison.protocol['windows']} windows")
    if max(row.perplexity for row in comparison.rows) > _WIDE * original.perplexity:
        axes.set_yscale("log")
    axes.margins(0.1)
    axes.grid(alpha=0.3, which="both")
    return bool(rows)


def _errors(comparison: Comparison, axes: Any) -> bool:
    rows = [row for row in comparison.rows if row.layer_errors]
    for number, row in enumerate(rows):
        axes.plot(row.layer_errors, marker=".", color=f"C{number % 10}", label=row.name)
    axes.set_yscale("log")
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("relative squared error of the outputs, mean over matrices")
    axes.set_title(f"{comparison.model}: error of each layer on its calibration text")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both")
    return bool(rows)
