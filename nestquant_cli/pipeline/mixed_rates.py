"""Bits matrix by matrix for a recipe with mixed rates: measured once, written beside the checkpoint, drawn."""

import dataclasses
import logging
from typing import Any

from ..checkpoint.output import Output
from ..e8.code import BLOCK
from ..parallel.team import Team
from ..quantization.allocation import Sensitivity, allocate
from ..storage.files import read_json, write_json
from .original_model import OriginalModel, read_windows
from .recipe import Recipe
from .sensitivity import measure

SENSITIVITIES, PICTURE = "sensitivities.json", "sensitivities.png"
SAMPLES, SEQLEN = 16, 512  # windows that sensitivities are measured on, and tokens in each, at most
_SIZE, _DPI = (10.0, 7.0), 150  # inches, dots an inch

logger = logging.getLogger("nestquant")


def mixed_words(
    original: OriginalModel, recipe: Recipe, text: dict[str, Any], output: Output, group: Team
) -> dict[str, int] | None:
    """Bits of a word of each matrix by full name; None where the recipe gives all of them the same.

    Args:
        original: the model.
        recipe: with the average in `weight_bits`.
        text: what is recorded of the calibration text, see `original.text_of`.
        output: where sensitivities.json and sensitivities.png go; of a run that is resumed it has them.
        group: of processes, all of which call this.
    """
    shape = recipe.shape("weight")
    if shape is None or recipe.allocation == "uniform":
        return None
    if not group.run_on_rank0(lambda: SENSITIVITIES in output.state.files):
        samples, seqlen = min(SAMPLES, recipe.samples), min(SEQLEN, recipe.seqlen)
        read = {name: text[name] for name in ("dataset", "text_field", "bos")}
        few = dataclasses.replace(recipe, samples=samples, seqlen=seqlen, **read)
        windows = read_windows(original, few)
        found = measure(original, recipe, windows.ids, group)
        words = allocate(found, shape.word_bits)
        group.run_on_rank0(lambda: _save(found, words, shape.word_bits, windows.sha256, output))
    matrices: dict[str, dict[str, Any]] = group.run_on_rank0(lambda: read_json(output.folder / SENSITIVITIES))[
        "matrices"
    ]
    return {name: round(BLOCK * item["bits"]) for name, item in matrices.items()}


def _save(found: dict[str, Sensitivity], words: dict[str, int], average: int, tokens: str, output: Output) -> None:
    weights = sum(item.weights for item in found.values())
    uniform, mixed = (
        sum(item.loss(bits) for item, bits in zip(found.values(), each, strict=True))
        for each in ([average] * len(found), [words[name] for name in found])
    )
    spent = sum(item.weights * words[name] for name, item in found.items()) / weights / BLOCK
    logger.info("mixed rates: %.4f bits on average, expected KL %.4f (uniform %.4f)", spent, mixed, uniform)
    matrices = {
        name: {"weights": item.weights, "sensitivity": item.cost, "bits": words[name] / BLOCK}
        for name, item in found.items()
    }
    _draw(matrices, output)
    output.state.claim(SENSITIVITIES)
    write_json(
        output.folder / SENSITIVITIES,
        {
            "average_bits": spent,
            "expected_kl": mixed,
            "expected_kl_uniform": uniform,
            "tokens_sha256": tokens,
            "matrices": matrices,
        },
    )


def _draw(matrices: dict[str, dict[str, Any]], output: Output) -> None:
    """Sensitivity and bits of each matrix over the depth of the model, a line for each kind of matrix."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no picture of the sensitivities: matplotlib is not installed (pip install 'nestquant[plots]')")
        return
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in matrices))
    for number, kind in enumerate(kinds):
        rows = [item for name, item in matrices.items() if name.rpartition(".")[2] == kind]
        depth, style = range(len(rows)), {"marker": "os^Dvp*"[number % 7], "markersize": 4, "label": kind}
        above.semilogy(depth, [item["sensitivity"] / item["weights"] for item in rows], **style)
        below.plot(depth, [item["bits"] for item in rows], **style)
    above.set_ylabel("sensitivity a weight (nats)")
    below.set_ylabel("bits a weight")
    below.set_xlabel("layer")
    above.legend(fontsize="small", ncols=2)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with output.state.writing(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
