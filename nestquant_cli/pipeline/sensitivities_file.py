"""sensitivities.json of a checkpoint with mixed rates, which a resumed run takes the bits from, and its picture."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from ..base.names import kind_of_matrix
from ..checkpoint.output import Output
from ..e8.code import BLOCK
from ..quantization.allocation import NESTED, Errors, Sensitivity
from ..storage.files import read_json, write_json

SENSITIVITIES, PICTURE = "sensitivities.json", "sensitivities.png"
SIZES = {"matrices": "weights", "inputs": "entries"}  # what the number of entries of an item is called
_WIDTH, _HEIGHT, _DPI = 10.0, 7.0, 150  # inches, dots an inch

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Allocation:
    """Bits of matrices, or of inputs.

    Attributes:
        sensitivities: by full name.
        words: bits of a word of each.
        average: bits of a word on average, which the uniform allocation gives to all.
        errors: mean squared error on a unit Gaussian by bits of a word.
        untied: where matrices with the same input have the same bits, what each would have without that.
    """

    sensitivities: dict[str, Sensitivity]
    words: dict[str, int]
    average: int
    errors: Errors = field(default_factory=lambda: NESTED)
    untied: dict[str, int] | None = None

    def loss(self, words: dict[str, int]) -> float:
        """Predicted KL divergence a token, in nats, of bits of a word by name."""
        return math.fsum(item.loss(words[name], self.errors) for name, item in self.sensitivities.items())

    def summary(self) -> dict[str, float]:
        """Average bits, and the predicted KL divergence of this and of the uniform allocation."""
        spent = sum(item.weights * self.words[name] for name, item in self.sensitivities.items())
        uniform = self.loss(dict.fromkeys(self.sensitivities, self.average))
        return {
            "average_bits": spent / sum(item.weights for item in self.sensitivities.values()) / BLOCK,
            "expected_kl": self.loss(self.words),
            "expected_kl_uniform": uniform,
            **({} if self.untied is None else {"expected_kl_untied": self.loss(self.untied)}),
        }

    def rows(self, size: str) -> dict[str, dict[str, Any]]:
        """What is known of each by name, its number of entries under `size`."""
        return {
            name: {size: item.weights, "sensitivity": item.cost, "bits": self.words[name] / BLOCK}
            for name, item in self.sensitivities.items()
        }


def recorded_words(output: Output) -> tuple[dict[str, int], dict[str, int]] | None:
    """Bits of a word of each matrix and of each input, as a run that is resumed has recorded them; None where it has
    not."""
    if SENSITIVITIES not in output.state.files:
        return None
    content = read_json(output.folder / SENSITIVITIES)
    matrices, inputs = (
        {name: round(BLOCK * item["bits"]) for name, item in content.get(part, {}).items()} for part in SIZES
    )
    return matrices, inputs


def save_sensitivities(matrices: Allocation | None, inputs: Allocation | None, tokens: str, output: Output) -> None:
    """Writes both files, and logs the predicted KL divergence of the mixed and of the uniform allocations.

    Args:
        matrices, inputs: what is mixed; None for what is not.
        tokens: hash of the windows that the sensitivities were measured on.
        output: the checkpoint.
    """
    content: dict[str, Any] = {}
    if matrices is not None:
        content |= matrices.summary()
        _log("matrices", matrices)
    if inputs is not None:
        content["average_inputs"] = inputs.summary()
        _log("inputs", inputs)
    content["tokens_sha256"] = tokens
    rows = {} if matrices is None else {"matrices": matrices.rows(SIZES["matrices"])}
    rows |= {} if inputs is None else {"inputs": inputs.rows(SIZES["inputs"])}
    _draw([(part, items, SIZES[part]) for part, items in rows.items()], output)
    output.state.claim(SENSITIVITIES)
    write_json(output.folder / SENSITIVITIES, content | rows)


def _log(part: str, allocation: Allocation) -> None:
    known = allocation.summary()
    tied = f", not tied {known['expected_kl_untied']:.4f}" if allocation.untied is not None else ""
    figures = known["average_bits"], known["expected_kl"], known["expected_kl_uniform"], tied
    logger.info("mixed rates of %s: %.4f bits on average, expected KL %.4f (uniform %.4f%s)", part, *figures)


def _draw(parts: list[tuple[str, dict[str, dict[str, Any]], str]], output: Output) -> None:
    """Sensitivity and bits over the depth of the model, a line for each kind of matrix or input.

    Args:
        parts: title, items by name, and what an item has its entries under.
        output: the checkpoint.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no picture of the sensitivities: matplotlib is not installed (pip install 'nestquant[plots]')")
        return
    figure = Figure(figsize=(_WIDTH * len(parts), _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (title, items, size) in enumerate(parts):
        above, below = (figure.add_subplot(2, len(parts), 1 + column + row * len(parts)) for row in range(2))
        for number, kind in enumerate(dict.fromkeys(kind_of_matrix(name) for name in items)):
            rows = [item for name, item in items.items() if kind_of_matrix(name) == kind]
            depth = range(len(rows))
            style: dict[str, Any] = {"marker": "os^Dvp*"[number % 7], "markersize": 4, "label": kind}
            above.semilogy(depth, [item["sensitivity"] / item[size] for item in rows], **style)
            below.plot(depth, [item["bits"] for item in rows], **style)
        above.set_title(title)
        above.set_ylabel("sensitivity an entry (nats)")
        below.set_ylabel("bits an entry")
        below.set_xlabel("layer")
        above.legend(fontsize="small", ncols=2)
        for axes in (above, below):
            axes.grid(alpha=0.3)
    with output.state.writing(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
