"""Measures one decoder layer: runs all windows through it, and makes statistics of its inputs and its cache."""

from collections import deque
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..codecs.weights import Shape
from ..models.structure import linears
from ..modules.cache_codes import CacheCodes, check_head_size
from ..parallel.team import team
from ..parallel.tiles import over_rows, run_tasks
from ..rotation.transform import rotation
from .fit_settings import FitSettings
from .input_collector import InputCollector, watch_all
from .input_groups import InputGroups
from .layer_stack import LayerStack
from .learned_rotation import learn_reflectors
from .statistics import InputStatistics, LayerStatistics, fit_cache


class LayerMeasurement:
    """One decoder layer while it is measured.

    Args:
        stack: the layers, with the hidden states in front of this one.
        index: number of the layer.
        settings: codes and rotation to fit.
        first: number of this process's first window.
        per_window: number of tokens of each window that are kept for fits.
    """

    def __init__(self, stack: LayerStack, index: int, settings: FitSettings, first: int, per_window: int) -> None:
        self.stack, self.index, self.settings, self.first, self.per_window = stack, index, settings, first, per_window
        self.name = stack.decoder.layer_name(index)
        self.modules = linears(stack.decoder.layers[index])

    def statistics(self) -> LayerStatistics:
        """Runs the layer on all windows and returns their statistics, the same on all processes."""
        self.stack.observer.reseed(self.settings.seed + self.index, self.first)
        group = team()
        groups, collectors = InputGroups(), dict[str, InputCollector]()
        group.run_on_all(lambda: self._run(groups, collectors))
        for collector in collectors.values():
            collector.join(group)
        order = list(collectors)
        inputs: dict[str, InputStatistics] = {}

        def finish(leader: str) -> None:
            inputs[leader] = self.finish(leader, groups.members[leader], collectors.pop(leader))  # frees its sums

        run_tasks(finish, order, sum(2 * collector.gram.upper.nbytes for collector in collectors.values()))
        inputs = {leader: inputs[leader] for leader in order}
        return LayerStatistics(inputs, None if self.settings.kv_shape is None else self._cache(self.settings.kv_shape))

    def run_unmeasured(self) -> None:
        """Runs the layer on all windows without measuring, for the hidden states behind it."""
        deque(self.stack.run(self.index), maxlen=0)
        self.stack.observer.take()

    def collector(self, leader: str, sequential: bool = False) -> InputCollector:
        """An empty collector for the input of the Linear `leader`; sequential collects E[x₀ xᵀ] as well."""
        features, device = self.modules[leader].in_features, self.stack.device
        return InputCollector(features, self.per_window, self.settings.seed, device, self.first, sequential)

    def finish(self, leader: str, members: list[str], collector: InputCollector) -> InputStatistics:
        """Statistics of one input from its collector, whose sums are freed."""
        settings, place = self.settings, f"{self.name}.{leader}"
        rotated, learned = settings.rotation_seed is not None, self._learning(members)
        return collector.finish(members, settings.act_shape, place, rotated, learned, settings.centering)

    def _learning(self, members: list[str]) -> Callable[[Tensor], Tensor] | None:
        """A function from rotated tokens (tokens, n) of an input to the reflectors of its learned rotation."""
        settings = self.settings
        if settings.rotation != "learned":
            return None

        def learned(tokens: Tensor) -> Tensor:
            kinds = [] if settings.act_shape is None else [(tokens, settings.act_shape)]
            if settings.weight_shape is not None:
                hadamard = rotation(tokens.shape[1], settings.rotation_seed)
                rows = torch.cat([self.modules[name].weight.detach().float() for name in members])
                padded = F.pad(rows.to(tokens.device), (0, tokens.shape[1] - rows.shape[1]))
                kinds.append((over_rows(hadamard.apply, padded), settings.weight_shape))
            return learn_reflectors(kinds, settings.reflections, settings.seed)

        return learned

    def _run(self, groups: InputGroups, collectors: dict[str, InputCollector]) -> None:
        """Runs all windows and fills `groups` and `collectors`.

        The first windows show which Linears share an input; after that the first one of each group is watched.
        """
        steps = self.stack.run(self.index)
        with groups.watch(self.modules):
            numbers = next(steps)
        for leader in groups.members:
            collectors[leader] = self.collector(leader)
            collectors[leader].take(groups.inputs.pop(leader))
        self._flush(numbers, collectors)
        with watch_all(collectors, self.modules):
            for numbers in steps:
                self._flush(numbers, collectors)

    def _flush(self, numbers: range, collectors: dict[str, InputCollector]) -> None:
        self.refuse_unusable(numbers)
        for collector in collectors.values():
            collector.flush()

    def refuse_unusable(self, numbers: range) -> None:
        """Raises NestQuantError where the layer's outputs on windows of this process are not finite."""
        for number in numbers:
            if not all_finite(self.stack.hidden[number]):
                raise NestQuantError(
                    f"the output of {self.name} has NaN or infinite values on calibration window {self.first + number}",
                    "calibration stopped",
                    "check the model's weights, or load it in a wider dtype, such as --dtype float32",
                )

    def _cache(self, shape: Shape) -> CacheCodes:
        sample = self.stack.observer.take()
        if sample is None:
            raise NestQuantError(
                f"{self.name} does not keep keys and values in a cache",
                "keys and values cannot be quantized",
                "quantize with --kv-bits 16",
            )
        for vectors in sample:
            check_head_size(vectors.shape[-1])
        keys, values = zip(*team().gather(sample), strict=True)
        gathered = torch.cat(keys, 1), torch.cat(values, 1)
        return fit_cache(gathered, shape, self.settings.seed, self.settings.rotation_seed, self.settings.centering)
