"""Where the statistics of the layers come from: a stored calibration, or text that passes through the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import NestQuantError
from ..calibration.collect import collect
from ..calibration.hidden import HiddenStates
from ..calibration.sequential import STATES_SHARE, Sequel
from ..calibration.statistics import LayerStatistics
from ..calibration.store import Calibration, to_device
from ..calibration.windows import Windows
from ..storage.resume import WORK
from .recipe import Recipe
from .subject import Subject, coding_of


@dataclass(frozen=True)
class Measuring:
    """One of `stored` and `windows` is there.

    Attributes:
        subject: the model.
        recipe: what to calibrate for.
        stored: a finished calibration.
        windows: calibration text.
        folder: the output; hidden states beyond the budget go beside it.
        budget: bytes of hidden states that may stay in memory.
    """

    subject: Subject
    recipe: Recipe
    stored: Calibration | None
    windows: Windows | None
    folder: Path
    budget: int

    def layers(self, done: list[bool], sequel: Sequel | None = None) -> Iterator[LayerStatistics | None]:
        """Statistics of each layer in order; None for a layer that is done already.

        Args:
            done: whether each layer is finished.
            sequel: for a sequential calibration.
        """
        if self.stored is None:
            assert self.windows is not None
            hidden = self.hidden(1 if sequel is None else STATES_SHARE)
            yield from collect(self.subject.weights, self.windows.ids, coding_of(self.recipe), done, hidden, sequel)
            return
        shapes = self.recipe.shape("act"), self.recipe.shape("kv")
        for index, finished in enumerate(done):
            layer = None if finished else self.stored.layer(index, *shapes)
            yield layer and to_device(layer, self.subject.weights.device)

    def hidden(self, share: int) -> HiddenStates:
        """Room for one tensor a window, with one of `share` parts of the budget.

        The file is made beside the result, whose disk is large; elsewhere only where the folder is not there.
        """
        beside = self.folder / WORK
        return HiddenStates(self.budget // share, beside if beside.is_dir() else None)


def refuse_stored(recipe: Recipe) -> None:
    """Raises NestQuantError where a calibration that is stored would not be that of the recipe."""
    if recipe.sequential:
        raise NestQuantError(
            "a sequential calibration follows the quantization from layer to layer and cannot be stored",
            "nothing was calibrated",
            "run 'nestquant quantize --sequential' without a calibration, or leave sequential out",
        )
