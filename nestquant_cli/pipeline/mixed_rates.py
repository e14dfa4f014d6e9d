"""Chooses the bits of each matrix for a recipe with mixed rates: sensitivities are measured, then bits allocated."""

import dataclasses
from typing import Any

from ..checkpoint.output import Output
from ..parallel.team import Team
from ..quantization.allocation import allocate
from .calibration_windows import read_windows
from .original_model import OriginalModel
from .recipe import Recipe
from .sensitivities_file import recorded_words, save_sensitivities
from .sensitivity import measure_sensitivities

# Windows and tokens in each that sensitivities are measured on, at most: 8,192 tokens, forward and backward.
SAMPLES, SEQLEN = 16, 512


def mixed_words(
    original: OriginalModel, recipe: Recipe, text: dict[str, Any], output: Output, group: Team
) -> dict[str, int] | None:
    """Bits of a word of each matrix by full name; None where the recipe gives all of them the same.

    W3.5 of the demo model went from perplexity 22.31 with uniform bits to 21.59 with mixed ones, 8 paths, on 8 × 1,024
    tokens (docs/mixed-rates.md).

    Args:
        original: the model.
        recipe: the recipe, with the average in `weight_bits`.
        text: records of the calibration text, as `calibration_windows.text_of` returns them.
        output: checkpoint, which gets sensitivities.json and sensitivities.png, or has them in a run that is resumed.
        group: the processes, all of which call this.
    """
    shape = recipe.shape("weight")
    if shape is None or recipe.allocation == "uniform":
        return None
    recorded = group.run_on_rank0(lambda: recorded_words(output))
    if recorded is not None:
        return recorded
    samples, seqlen = min(SAMPLES, recipe.samples), min(SEQLEN, recipe.seqlen)
    read = {name: text[name] for name in ("dataset", "text_field", "bos")}
    windows = read_windows(original, dataclasses.replace(recipe, samples=samples, seqlen=seqlen, **read))
    sensitivities = measure_sensitivities(original, recipe, windows.ids, group)
    words, untied = (allocate(sensitivities, shape.word_bits, tied) for tied in (recipe.tie_inputs, False))
    saved = sensitivities, words, shape.word_bits, windows.sha256, output, untied if recipe.tie_inputs else None
    group.run_on_rank0(lambda: save_sensitivities(*saved))
    return words
