"""Measures one decoder layer: runs all windows through it, and makes statistics of its inputs and its cache."""

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

from torch import nn

from ..base.errors import NestQuantError
from ..base.finite import all_finite
from ..base.memory import return_blocks
from ..codecs.weights import Shape
from ..models.expert_families import expert_families
from ..models.structure import linears
from ..modules.cache_codes import CacheCodes, check_head_size
from ..parallel.team import team
from ..parallel.tiles import run_tasks
from .all_experts import every_token
from .expert_blocks import blocks_of
from .expert_collector import ExpertCollector
from .fit_settings import FitSettings
from .input_collector import InputCollector, watch_all
from .input_groups import InputGroups
from .kv_observer import Sample
from .layer_stack import LayerStack
from .matrices_behind import behind, learning
from .row_parallel import row_parallel
from .statistics import InputStatistics, LayerStatistics, fit_cache

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
        self.row_parallel: frozenset[str] = frozenset()  # filled by `find_row_parallel`

    def parts(self, budget: int) -> Iterator[LayerStatistics]:
        """Runs the layer on all windows and yields their statistics in parts, the same on all processes.

        The first part has all inputs but those of experts, and the cache's codes. Experts follow in blocks, each with a
        pass of its own after the first one, so that the sums of one block are in memory at a time; the caller lets go
        of a part before it asks for the next. The layer is run to its end in the last pass only.

        Args:
            budget: bytes of the sums of a block of experts; statistics and their order do not depend on it.
        """
        self.stack.observer.reseed(self.settings.seed + self.index, self.first)
        group = team()
        groups, collectors, experts = InputGroups(), dict[str, InputCollector](), list[ExpertCollector]()
        shared = [(self.modules[names[0]].in_features, len(names)) for names in self.families]
        again = len(blocks_of(shared, budget)) > 1
        blocks = group.run_on_all(lambda: self._run(groups, collectors, experts, budget, not again))[0]
        cache = None if self.settings.kv_shape is None else self.cache(self.settings.kv_shape)
        self.stack.observer.watching = False
        yield LayerStatistics(self._ordinary(groups, collectors) | self._finish_experts(experts), cache)
        for number, block in enumerate(blocks[1:], 2):
            group.run_on_all(partial(self._run_again, experts, block, number == len(blocks)))
            yield LayerStatistics(self._finish_experts(experts), cache)
        if again and len(blocks) == 1:
            self.run_unmeasured()
        self.stack.observer.watching = self.settings.kv_shape is not None

    def _ordinary(self, groups: InputGroups, collectors: dict[str, InputCollector]) -> dict[str, InputStatistics]:
        """Statistics of all inputs but those of experts."""
        for collector in collectors.values():
            collector.join(team())
        order = list(collectors)
        inputs: dict[str, InputStatistics] = {}

        def finish(leader: str) -> None:
            inputs[leader] = self.finish(leader, groups.members[leader], collectors.pop(leader))  # frees its sums

        run_tasks(finish, order, sum(2 * collector.gram.upper.entries.nbytes for collector in collectors.values()))
        return {leader: inputs[leader] for leader in order}

    def run_unmeasured(self) -> None:
        """Runs the layer on all windows without measuring, for the hidden states behind it."""
        deque(self.stack.run(self.index), maxlen=0)
        self.stack.observer.take()

    def collector(self, leader: str, sequential: bool = False, residual: bool = False) -> InputCollector:
        """An empty collector for the input of the Linear `leader`; sequential collects E[x₀ xᵀ] as well, and residual
        the moments of the residual stream's error."""
        linear, of = self.modules[leader], self.settings
        own = of.seed, self.stack.device, self.first, sequential, linear.out_features if residual else 0
        return InputCollector(linear.in_features, self.per_window, *own)

    def finish(self, leader: str, members: list[str], collector: InputCollector) -> InputStatistics:
        """Statistics of one input from its collector, whose sums are freed."""
        place = f"{self.name}.{leader}"
        settings = self.settings.of_input(place)
        rotated, learned = settings.rotation_seed is not None, learning(settings, self._linears(members))
        fit = settings.act_shape, place, rotated, learned, settings.centering, self._parts(members)
        corrections = settings.drift_correction, settings.residual_correction
        return collector.finish(members, *fit, behind(settings, self._linears(members)), *corrections)

    def _finish_experts(self, collectors: list[ExpertCollector]) -> dict[str, InputStatistics]:
        """Statistics of the experts that the last pass was for, by the first Linear of each."""
        return {name: item for collector in collectors for name, item in self._finish_block(collector).items()}

    def _finish_block(self, collector: ExpertCollector) -> dict[str, InputStatistics]:
        shared = collector.shared
        place = f"{self.name}.{shared.source}"
        settings = self.settings.of_input(place)
        collector.join(team())
        if collector.fit is None:
            rotated = settings.rotation_seed is not None
            members = [name for family in shared.families for name in family]
            learned, parts = learning(settings, self._linears(members), _EXPERT_ROWS), self._parts(members)
            matrices = behind(settings, self._linears(members))
            collector.fit_shared(settings.act_shape, place, rotated, learned, settings.centering, parts, matrices)
        inputs: dict[str, InputStatistics] = {}

        def finish(expert: int) -> None:
            inputs[shared.members(expert)[0]] = collector.finish(expert)  # frees its sum

        experts = list(collector.grams)
        run_tasks(finish, experts, lambda _: 2 * collector.pool.upper.entries.nbytes)
        return {shared.members(expert)[0]: inputs[shared.members(expert)[0]] for expert in experts}

    def find_row_parallel(self) -> None:
        """Finds which Linears are row-parallel, from one window, where the settings divide the inputs of those."""
        layer, run = self.stack.decoder.layers[self.index], partial(self.stack.run_once, self.index)
        if self.settings.parts > 1:
            found = team().run_on_all(lambda: row_parallel(layer, self.settings.divided(), self.name, run))
            self.row_parallel = found[0]

    def _parts(self, members: list[str]) -> int:
        """Number of parts of the input of some Linears."""
        return self.settings.parts if self.row_parallel.issuperset(members) else 1

    def _linears(self, members: list[str]) -> list[nn.Linear]:
        return [self.modules[name] for name in members]

    def _run(
        self,
        groups: InputGroups,
        collectors: dict[str, InputCollector],
        experts: list[ExpertCollector],
        budget: int,
        move: bool,
    ) -> list[list[list[int]]]:
        """Runs all windows, fills `groups`, `collectors` and `experts`, and returns the blocks of experts.

        The first windows show which Linears share an input; after that the first one of each group is watched. All
        tokens at all experts would be too many to be kept: then the first windows are run once more.
        """
        steps, sent_to_all = self.stack.run(self.index, move=move), self.settings.all_experts
        with groups.watch(self.modules, self.families):
            numbers = next(self.stack.run(self.index, move=False) if sent_to_all else steps)
        collectors |= {leader: self.collector(leader) for leader in groups.members}
        for shared in groups.experts:
            features = self.modules[shared.source].in_features
            inputs = shared, features, self.per_window, self.settings.seed, self.stack.device, self.first
            experts.append(ExpertCollector(*inputs))
        blocks = blocks_of([(collector.features, collector.shared.experts) for collector in experts], budget)
        for collector, block in zip(experts, blocks[0], strict=True):
            collector.open(block)
        if not sent_to_all:
            self._take(groups, collectors, experts)
            self._flush(numbers, collectors.values())
        groups.inputs, groups.expert_inputs = {}, {}
        return_blocks()  # of what all Linears were given in the first windows
        with self._sent_to_all(), watch_all(collectors, self.modules):
            self._watch_experts(steps, experts, collectors.values())
        return blocks

    def _take(self, groups: InputGroups, collectors: dict[str, InputCollector], experts: list[ExpertCollector]) -> None:
        """Takes what the Linears were given in the first windows."""
        for leader, collector in collectors.items():
            collector.take(groups.inputs.pop(leader))
        for of_experts in experts:
            of_experts.take({name: groups.expert_inputs.pop(name, {}) for name in of_experts.shared.families[0]})

    def _run_again(self, experts: list[ExpertCollector], block: list[list[int]], last: bool) -> None:
        """Runs all windows for another block of experts."""
        for collector, numbers in zip(experts, block, strict=True):
            collector.open(numbers)
        with self._sent_to_all({number for numbers in block for number in numbers}):
            self._watch_experts(self.stack.run(self.index, move=last), experts, [])

    def _sent_to_all(self, experts: Collection[int] | None = None) -> AbstractContextManager[None]:
        """Within it experts are given every token, if the settings want that; None stands for all experts."""
        layer = self.stack.decoder.layers[self.index]
        return every_token(layer, experts) if self.settings.all_experts else nullcontext()

    def _watch_experts(
        self, steps: Iterator[range], experts: list[ExpertCollector], others: Collection[InputCollector]
    ) -> None:
        with ExitStack() as hooks:
            for collector in experts:
                hooks.enter_context(collector.watch(self.modules))
            for numbers in steps:
                self._flush(numbers, others)

    def _flush(self, numbers: range, collectors: Collection[InputCollector]) -> None:
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

    def cache(self, shape: Shape) -> CacheCodes | None:
        """Codes of keys and values; None for a layer whose keys and values stay in 16 bits, or that has none."""
        sample = self.stack.observer.take()
        if sample is None or self.index in self.settings.kv_skip:
            return None
        for vectors in (sample.keys, sample.values):
            check_head_size(vectors.shape[-1])
        gathered, of = Sample.join(team().gather(sample)), self.settings
        return fit_cache(gathered, shape, of.seed, of.rotation_seed, of.centering, of.value_shape, of.key_scales)
