"""Where the statistics of the layers come from: a stored calibration, or text that passes through the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..calibration.fit_settings import FitSettings
from ..calibration.hidden_states import HiddenStates
from ..calibration.measure_layers import measure_layers
from ..calibration.sequential import STATES_SHARE, QuantizerCallbacks
from ..calibration.statistics import LayerStatistics
from ..calibration.store import Calibration, to_device
from ..calibration.windows import Windows
from ..storage.resume import WORK
from .original_model import OriginalModel
from .recipe import Recipe


@dataclass(frozen=True)
class StatisticsSource:
    """One of `stored` and `windows` is there.

    Attributes:
        original: the model.
        recipe: what to calibrate for.
        stored: a finished calibration.
        windows: calibration text.
        folder: the output; hidden states beyond the budget go beside it.
        budget: bytes of hidden states that may stay in memory.
    """

    original: OriginalModel
    recipe: Recipe
    stored: Calibration | None
    windows: Windows | None
    folder: Path
    budget: int

    def layers(self, done: list[bool], callbacks: QuantizerCallbacks | None = None) -> Iterator[LayerStatistics | None]:
        """Statistics of each layer in order; None for a layer that is done already.

        Args:
            done: whether each layer is finished.
            callbacks: for a sequential calibration.
        """
        if self.stored is None:
            assert self.windows is not None
            hidden = self.hidden(1 if callbacks is None else STATES_SHARE)
            yield from measure_layers(
                self.original.weights, self.windows.ids, fit_settings(self.recipe), done, hidden, callbacks
            )
            return
        shapes = self.recipe.shape("act"), self.recipe.shape("kv")
        for index, finished in enumerate(done):
            layer = None if finished else self.stored.layer(index, *shapes)
            yield layer and to_device(layer, self.original.weights.device)

    def hidden(self, share: int) -> HiddenStates:
        """Room for one tensor a window, with one of `share` parts of the budget.

        The file is made beside the result, whose disk is large; elsewhere only where the folder is not there.
        """
        beside = self.folder / WORK
        return HiddenStates(self.budget // share, beside if beside.is_dir() else None)


def fit_settings(recipe: Recipe) -> FitSettings:
    """The settings of a recipe that calibration needs."""
    shapes = recipe.shape("act"), recipe.shape("kv")
    return FitSettings(
        *shapes, recipe.seed, recipe.rotation, recipe.shape("weight"), recipe.reflections, recipe.centering
    )
