"""Chooses the bits of each matrix and input for a recipe with mixed rates: sensitivities are measured, then bits
allocated."""

from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.output import Output
from ..codecs.integer.codec import IntegerCodec
from ..codecs.nested.codec import NestedCodec
from ..codecs.registry import shape_of
from ..codecs.weights import Shape
from ..e8.code import BLOCK
from ..parallel.team import Team
from ..quantization.allocation import INPUTS, INTEGERS, allocate
from .calibration_windows import other_windows
from .original_model import OriginalModel
from .recipe import Recipe
from .sensitivities_file import Allocation, recorded_words, save_sensitivities
from .sensitivity import measure_sensitivities

# Windows and tokens in each that sensitivities are measured on, at most: 8,192 tokens, forward and backward.
SAMPLES, SEQLEN = 16, 512


@dataclass(frozen=True)
class Rates:
    """What is not coded with the recipe's bits.

    Attributes:
        words: bits of a word of each matrix by its full name; None gives all of them the recipe's.
        inputs: shape of the code of an input where it is not the recipe's, by the full name of the first Linear that
            takes the input.
    """

    words: dict[str, int] | None = None
    inputs: dict[str, Shape] = field(default_factory=dict)


def mixed_rates(original: OriginalModel, recipe: Recipe, text: dict[str, Any], output: Output, group: Team) -> Rates:
    """The bits of each matrix and of each input, for those that the recipe gives an average.

    W3.5 of the demo model went from perplexity 22.31 with uniform bits to 21.59 with mixed ones, 8 paths, on 8 × 1,024
    tokens (docs/mixed-rates.md).

    Args:
        original: the model.
        recipe: the recipe, with the averages in `weight_bits` and `act_bits`.
        text: records of the calibration text, as `calibration_windows.text_of` returns them.
        output: checkpoint, which gets sensitivities.json and sensitivities.png, or has them in a run that is resumed.
        group: the processes, all of which call this.
    """
    weight, act = (recipe.shape(part) for part in ("weight", "act"))
    weight = None if recipe.allocation == "uniform" else weight
    act = None if recipe.act_allocation == "uniform" else act
    if weight is None and act is None:
        return Rates()
    recorded = group.run_on_rank0(lambda: recorded_words(output))
    if recorded is None:
        matrices, inputs, sha256 = _chosen(original, recipe, text, group, weight, act)
        group.run_on_rank0(lambda: save_sensitivities(matrices, inputs, sha256, output))
        words, tokens = ({} if each is None else each.words for each in (matrices, inputs))
    else:
        words, tokens = recorded
    shapes = {name: input_shape(bits) for name, bits in tokens.items()}
    return Rates(words or None, {name: shape for name, shape in shapes.items() if shape != act})


def _chosen(
    original: OriginalModel,
    recipe: Recipe,
    text: dict[str, Any],
    group: Team,
    weight: Shape | None,
    act: Shape | None,
) -> tuple[Allocation | None, Allocation | None, str]:
    """Measures and allocates; returns the bits of matrices and of inputs, and the hash of the text's windows."""
    samples, seqlen = min(SAMPLES, recipe.samples), min(SEQLEN, recipe.seqlen)
    windows = other_windows(original, recipe, text, samples, seqlen)
    found = measure_sensitivities(original, recipe, windows.ids, group)
    matrices = inputs = None
    if weight is not None:
        costs, average = found.matrices, weight.word_bits
        words, untied = (allocate(costs, average, tied) for tied in (recipe.tie_inputs, False))
        matrices = Allocation(costs, words, average, untied=untied if recipe.tie_inputs else None)
    if act is not None:
        average = act.word_bits
        words = allocate(found.inputs, average, errors=INPUTS)
        inputs = Allocation(found.inputs, words, average, INPUTS)
    return matrices, inputs, windows.sha256


def input_shape(word_bits: int) -> Shape:
    """The shape of the code of an input with so many bits a word."""
    return shape_of(IntegerCodec.name if word_bits in INTEGERS else NestedCodec.name, word_bits / BLOCK, None, "act")
