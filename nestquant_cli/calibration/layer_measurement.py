"""Measures one decoder layer: runs all windows through it, and makes statistics of its inputs and its cache."""

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..codecs.weights import Shape
from ..models.expert_families import expert_families
from ..models.structure import linears
from ..modules.cache_codes import CacheCodes, check_head_size
from ..parallel.team import team
from ..parallel.tiles import over_rows, run_tasks
from ..rotation.transform import rotation
from .expert_collector import ExpertCollector
from .fit_settings import FitSettings
from .input_collector import InputCollector, watch_all
from .input_groups import ExpertInput, InputGroups
from .layer_stack import LayerStack
from .learned_rotation import learn_reflectors
from .statistics import InputStatistics, LayerStatistics, fit_cache

Collector = InputCollector | ExpertCollector

_EXPERT_ROWS = 4096  # rows of all experts' matrices that a learned rotation is made for


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
        self.families = expert_families(stack.decoder.layers[index])

    def statistics(self) -> LayerStatistics:
        """Runs the layer on all windows and returns their statistics, the same on all processes."""
        self.stack.observer.reseed(self.settings.seed + self.index, self.first)
        group = team()
        groups, collectors, experts = InputGroups(), dict[str, InputCollector](), list[ExpertCollector]()
        group.run_on_all(lambda: self._run(groups, collectors, experts))
        everyone: list[Collector] = [*collectors.values(), *experts]
        for collector in everyone:
            collector.join(group)
        order = list(collectors)
        inputs: dict[str, InputStatistics] = {}

        def finish(leader: str) -> None:
            inputs[leader] = self.finish(leader, groups.members[leader], collectors.pop(leader))  # frees its sums

        run_tasks(finish, order, sum(2 * collector.gram.upper.nbytes for collector in collectors.values()))
        inputs = {leader: inputs[leader] for leader in order}
        for shared in experts:
            inputs |= self._finish_experts(shared)
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

    def _finish_experts(self, collector: ExpertCollector) -> dict[str, InputStatistics]:
        """Statistics of the experts that share an input, by the first Linear of each."""
        settings, shared = self.settings, collector.shared
        place, rotated = f"{self.name}.{shared.source}", settings.rotation_seed is not None
        learned = self._learning([name for family in shared.families for name in family], _EXPERT_ROWS)
        collector.fit_shared(settings.act_shape, place, rotated, learned, settings.centering)
        inputs: dict[str, InputStatistics] = {}

        def finish(expert: int) -> None:
            inputs[shared.members(expert)[0]] = collector.finish(expert)  # frees its sum

        run_tasks(finish, range(shared.experts), 2 * collector.pool.upper.nbytes * shared.experts)
        return {name: inputs[name] for name in shared.families[0]}

    def _learning(self, members: list[str], most: int | None = None) -> Callable[[Tensor], Tensor] | None:
        """A function from rotated tokens (tokens, n) of an input to the reflectors of its learned rotation.

        Args:
            members: names of the Linears that take the input.
            most: number of their rows that are looked at, about; None looks at all.
        """
        settings = self.settings
        if settings.rotation != "learned":
            return None

        def learned(tokens: Tensor) -> Tensor:
            kinds = [] if settings.act_shape is None else [(tokens, settings.act_shape)]
            if settings.weight_shape is not None:
                hadamard = rotation(tokens.shape[1], settings.rotation_seed)
                step = 1 if most is None else max(1, sum(self.modules[name].out_features for name in members) // most)
                rows = torch.cat([self.modules[name].weight.detach()[::step].float() for name in members])
                padded = F.pad(rows.to(tokens.device), (0, tokens.shape[1] - rows.shape[1]))
                kinds.append((over_rows(hadamard.apply, padded), settings.weight_shape))
            return learn_reflectors(kinds, settings.reflections, settings.seed)

        return learned

    def _run(self, groups: InputGroups, collectors: dict[str, InputCollector], experts: list[ExpertCollector]) -> None:
        """Runs all windows and fills `groups`, `collectors` and `experts`.

        The first windows show which Linears share an input; after that the first one of each group is watched.
        """
        steps = self.stack.run(self.index)
        with groups.watch(self.modules, self.families):
            numbers = next(steps)
        for leader in groups.members:
            collectors[leader] = self.collector(leader)
            collectors[leader].take(groups.inputs.pop(leader))
        for shared in groups.experts:
            experts.append(self._expert_collector(shared))
            experts[-1].take({name: groups.expert_inputs.pop(name, {}) for name in shared.families[0]})
        everyone: list[Collector] = [*collectors.values(), *experts]
        self._flush(numbers, everyone)
        with ExitStack() as hooks:
            for collector in experts:
                hooks.enter_context(collector.watch(self.modules))
            hooks.enter_context(watch_all(collectors, self.modules))
            for numbers in steps:
                self._flush(numbers, everyone)

    def _expert_collector(self, shared: ExpertInput) -> ExpertCollector:
        features, device = self.modules[shared.source].in_features, self.stack.device
        return ExpertCollector(shared, features, self.per_window, self.settings.seed, device, self.first)

    def _flush(self, numbers: range, collectors: list[Collector]) -> None:
        self.refuse_unusable(numbers)
        for collector in collectors:
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

    def _cache(self, shape: Shape) -> CacheCodes | None:
        """Codes of keys and values; None for a layer that keeps none in a cache, or keeps them in a way of its own."""
        sample = self.stack.observer.take()
        if sample is None:
            return None
        for vectors in sample:
            check_head_size(vectors.shape[-1])
        keys, values = zip(*team().gather(sample), strict=True)
        gathered = torch.cat(keys, 1), torch.cat(values, 1)
        return fit_cache(gathered, shape, self.settings.seed, self.settings.rotation_seed, self.settings.centering)
