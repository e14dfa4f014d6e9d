"""sensitivities.json of a checkpoint with mixed rates, which a resumed run takes the bits from, and its picture."""

import logging
from typing import Any

from ..base.names import kind_of_matrix
from ..checkpoint.output import Output
from ..e8.code import BLOCK
from ..quantization.allocation import Sensitivity
from ..storage.files import read_json, write_json

SENSITIVITIES, PICTURE = "sensitivities.json", "sensitivities.png"
_SIZE, _DPI = (10.0, 7.0), 150  # inches, dots an inch

logger = logging.getLogger("nestquant")


def recorded_words(output: Output) -> dict[str, int] | None:
    """Bits of a word of each matrix, as a run that is resumed has recorded them; None where it has not."""
    if SENSITIVITIES not in output.state.files:
        return None
    matrices: dict[str, dict[str, Any]] = read_json(output.folder / SENSITIVITIES)["matrices"]
    return {name: round(BLOCK * item["bits"]) for name, item in matrices.items()}


def save_sensitivities(
    sensitivities: dict[str, Sensitivity],
    words: dict[str, int],
    average: int,
    tokens: str,
    output: Output,
    untied: dict[str, int] | None = None,
) -> None:
    """Writes both files, and logs the predicted KL divergence of the mixed and of the uniform allocation.

    Args:
        sensitivities: sensitivity of each matrix by its full name.
        words: bits of a word of each matrix.
        average: bits of a word on average, which the uniform allocation gives to all.
        tokens: hash of the windows that the sensitivities were measured on.
        output: the checkpoint.
        untied: where matrices with the same input have the same bits, what each would have without that.
    """

    def loss(of: dict[str, int]) -> float:
        return sum(item.loss(of[name]) for name, item in sensitivities.items())

    weights = sum(item.weights for item in sensitivities.values())
    uniform, mixed = loss(dict.fromkeys(sensitivities, average)), loss(words)
    tied = {} if untied is None else {"expected_kl_untied": loss(untied)}
    spent = sum(item.weights * words[name] for name, item in sensitivities.items()) / weights / BLOCK
    logger.info(
        "mixed rates: %.4f bits on average, expected KL %.4f (uniform %.4f%s)",
        spent,
        mixed,
        uniform,
        "".join(f", inputs not tied {each:.4f}" for each in tied.values()),
    )
    matrices = {
        name: {"weights": item.weights, "sensitivity": item.cost, "bits": words[name] / BLOCK}
        for name, item in sensitivities.items()
    }
    _draw(matrices, output)
    output.state.claim(SENSITIVITIES)
    write_json(
        output.folder / SENSITIVITIES,
        {
            "average_bits": spent,
            "expected_kl": mixed,
            "expected_kl_uniform": uniform,
            **tied,
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
    kinds = list(dict.fromkeys(kind_of_matrix(name) for name in matrices))
    for number, kind in enumerate(kinds):
        rows = [item for name, item in matrices.items() if kind_of_matrix(name) == kind]
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
