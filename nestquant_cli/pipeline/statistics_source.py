"""Yields the statistics of each layer, from a stored calibration or from text that passes through the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..calibration.fit_settings import FitSettings
from ..calibration.hidden_states import HiddenStates
from ..calibration.measure_layers import measure_layers
from ..calibration.row_parallel import Divided, refuse_indivisible
from ..calibration.sequential import STATES_SHARE, QuantizerCallbacks
from ..calibration.statistics import LayerStatistics
from ..calibration.store import Calibration, to_device
from ..calibration.windows import Windows
from ..codecs.weights import Shape
from ..storage.resume import WORK
from .original_model import OriginalModel
from .recipe import Recipe
from .skipped_layers import skipped_layers


@dataclass(frozen=True)
class StatisticsSource:
    """A stored calibration or calibration windows: one of the two is None.

    Attributes:
        original: the model.
        recipe: settings of the quantization to calibrate for.
        stored: a finished calibration, or None.
        windows: calibration windows, or None.
        folder: output folder; hidden states beyond the budget go to a file in it.
        budget: bytes of hidden states that may stay in memory, and twice those of sums of experts.
        act_shapes: shapes of inputs' codes where they are not the recipe's (`FitSettings.act_shapes`).
    """

    original: OriginalModel
    recipe: Recipe
    stored: Calibration | None
    windows: Windows | None
    folder: Path
    budget: int
    act_shapes: Mapping[str, Shape] = field(default_factory=dict)

    def layers(
        self, done: list[bool], callbacks: QuantizerCallbacks | None = None
    ) -> Iterator[Iterator[LayerStatistics] | None]:
        """Yields the statistics of each layer in order, in parts as `measure_layers`; None for a layer that is done.

        Args:
            done: whether each layer is finished.
            callbacks: functions that quantize the layers on the way, for a sequential calibration; else None.
        """
        if self.stored is None:
            assert self.windows is not None
            hidden = self.hidden(1 if callbacks is None else STATES_SHARE)
            yield from measure_layers(
                self.original.weights,
                self.windows.ids,
                fit_settings(self.recipe, self.original.depth, self.act_shapes),
                done,
                hidden,
                callbacks,
                sums_budget(self.budget),
            )
            return
        shapes = self.recipe.shape("act"), self.recipe.shape("kv")
        others = sums_budget(self.budget), self.recipe.shape("value")
        for index, finished in enumerate(done):
            parts = None if finished else self.stored.layer(index, *shapes, *others)
            yield None if parts is None else self._usable(parts, index)

    def _usable(self, parts: Iterator[LayerStatistics], index: int) -> Iterator[LayerStatistics]:
        """Stored statistics of a layer on the model's device, without codes of a cache that is to have none."""
        place = self.original.weights.decoder.layer_name(index)
        skipped = index in skipped_layers(self.recipe.kv_skip_layers, self.original.depth)
        for part in parts:
            self._refuse_other_parts(part, place)
            kept = replace(part, cache=None) if skipped else part
            yield to_device(kept, self.original.weights.device)
            del part, kept

    def _refuse_other_parts(self, layer: LayerStatistics, place: str) -> None:
        """Raises NestQuantError where the weights' code has groups that a stored calibration in parts would split."""
        divided = Divided.of(self.recipe.tensor_parallel, self.recipe.shape("weight"))
        parted = {name: len(item.noise) for name, item in layer.inputs.items() if item.parts > 1}
        refuse_indivisible(parted, divided, place)

    def hidden(self, share: int) -> HiddenStates:
        """An empty store of one tensor a window that keeps budget / share bytes in memory.

        Its file is made in the output folder, on a disk that is large enough; in the system's folder for temporary
        files where there is no output folder yet.
        """
        folder = self.folder / WORK
        return HiddenStates(self.budget // share, folder if folder.is_dir() else None)


def sums_budget(budget: int) -> int:
    """Bytes of the sums of experts that are in memory at a time: half the budget, besides the hidden states."""
    return budget // 2


def fit_settings(recipe: Recipe, depth: int, act_shapes: Mapping[str, Shape] | None = None) -> FitSettings:
    """The settings of a recipe that calibration needs, for a model with `depth` layers.

    Args:
        recipe: the recipe.
        depth: number of layers.
        act_shapes: shapes of inputs' codes where they are not the recipe's (`FitSettings.act_shapes`).
    """
    shapes = recipe.shape("act"), recipe.shape("kv")
    return FitSettings(
        *shapes,
        recipe.seed,
        recipe.rotation,
        recipe.shape("weight"),
        recipe.reflections,
        recipe.centering,
        recipe.all_experts,
        recipe.tensor_parallel,
        recipe.scales_channels,
        _drift_correction(recipe),
        recipe.residual_correction or 0.0,
        recipe.shape("value"),
        skipped_layers(recipe.kv_skip_layers, depth),
        recipe.key_scales,
        act_shapes=act_shapes or {},
    )


def _drift_correction(recipe: Recipe) -> float:
    """ε of a sequential calibration, or its default with or without rounded activations."""
    if recipe.drift_correction is not None:
        return recipe.drift_correction
    return 1.0 if recipe.shape("act") is None else 0.5
