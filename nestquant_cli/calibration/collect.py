"""One streaming pass over the layers of a model: yields each layer's statistics as soon as they are known."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.heads import CacheCodes, check_head_size
from ..codecs.protocol import Shape
from ..errors import NestQuantError
from ..models.structure import linears
from ..models.weights import Weights
from ..rotation.transform import rotation
from ..team import team
from ..tiles import over_rows, run_tasks
from .hidden import HiddenStates
from .learn import learn
from .observer import TOKENS, InputGroups, KVObserver
from .stack import LayerStack
from .statistics import NOISE_TOKENS, InputCollector, InputStatistics, LayerStatistics, fit_cache, watch_all


@dataclass(frozen=True)
class Coding:
    """What is to be coded, as far as calibration is concerned.

    Attributes:
        act_shape, kv_shape: codes to fit, None for 16 bits.
        seed: of the rotation signs and of every random choice.
        rotation: one of `modules.layout.ROTATIONS`.
        weight_shape: that a learned rotation is made for; None for 16 bits.
        reflections: of a learned rotation.
        centering: whether nested codes of inputs and keys may have centers.
    """

    act_shape: Shape | None
    kv_shape: Shape | None
    seed: int
    rotation: str = "hadamard"
    weight_shape: Shape | None = None
    reflections: int = 0
    centering: bool = True

    @property
    def rotation_seed(self) -> int | None:
        """Of the signs; None where nothing is rotated."""
        return None if self.rotation == "none" else self.seed


def collect(
    weights: Weights,
    windows: Tensor,
    coding: Coding,
    skip: list[bool] | None = None,
    hidden: HiddenStates | None = None,
) -> Iterator[LayerStatistics | None]:
    """Statistics of each decoder layer in order, which is held until the next one is asked for.

    The processes of a team each run their share of the windows and all get the statistics of all windows.

    Args:
        weights: of a model in evaluation mode; its layers are left as they are.
        windows: (windows, tokens) int64, all of them on every process.
        coding: what to fit.
        skip: layers whose statistics are not needed; None is yielded for them.
        hidden: where hidden states are kept, empty.

    Raises:
        NestQuantError: hidden states that are not finite, heads that cannot be coded, or fewer windows than processes.
    """
    group = team()
    if len(windows) < group.size:
        raise NestQuantError(
            f"{len(windows)} calibration windows cannot be divided over {group.size} processes",
            "nothing was calibrated",
            "raise --samples or start fewer processes",
        )
    config = weights.model.config.get_text_config(decoder=True)
    observer = KVObserver(config, TOKENS / max(1, windows.numel()))
    own = group.share(len(windows))
    stack = LayerStack(weights, windows[own.start : own.stop], observer, hidden)
    observer.watching = coding.kv_shape is not None
    per_window = -(-NOISE_TOKENS // len(windows))
    for index in range(len(weights.decoder.layers)):
        with weights.layer(index):
            if skip is None or not skip[index]:
                yield _Layer(stack, index, coding, own.start, per_window).statistics()
                continue
            if not all(skip[index:]):
                deque(stack.run(index), maxlen=0)  # the next layers need the hidden states behind this one
                observer.take()
            yield None


class _Layer:
    """One decoder layer while it is measured.

    Args:
        stack: with the hidden states in front of the layer.
        index: of the layer.
        coding: what to fit.
        first: number of this process's first window.
        per_window: tokens that are kept of each window.
    """

    def __init__(self, stack: LayerStack, index: int, coding: Coding, first: int, per_window: int) -> None:
        self.stack, self.index, self.coding, self.first, self.per_window = stack, index, coding, first, per_window
        self.name = stack.decoder.layer_name(index)
        self.modules = linears(stack.decoder.layers[index])

    def statistics(self) -> LayerStatistics:
        """Runs the layer on all windows."""
        self.stack.observer.reseed(self.coding.seed + self.index, self.first)
        group = team()
        groups, collectors = InputGroups(), dict[str, InputCollector]()
        group.together(lambda: self._run(groups, collectors))
        for collector in collectors.values():
            collector.join(group)
        order = list(collectors)
        inputs: dict[str, InputStatistics] = {}

        def finish(leader: str) -> None:
            collector = collectors.pop(leader)  # sums are released one by one
            members, place = groups.members[leader], f"{self.name}.{leader}"
            rotated, learned = self.coding.rotation_seed is not None, self._learning(members)
            centering = self.coding.centering
            inputs[leader] = collector.finish(members, self.coding.act_shape, place, rotated, learned, centering)

        run_tasks(finish, order, sum(2 * collector.gram.upper.nbytes for collector in collectors.values()))
        inputs = {leader: inputs[leader] for leader in order}
        return LayerStatistics(inputs, None if self.coding.kv_shape is None else self._cache(self.coding.kv_shape))

    def _learning(self, members: list[str]) -> Callable[[Tensor], Tensor] | None:
        """What learns the rotation of an input from its tokens and the weights of its members."""
        coding = self.coding
        if coding.rotation != "learned":
            return None

        def learned(tokens: Tensor) -> Tensor:
            kinds = [] if coding.act_shape is None else [(tokens, coding.act_shape)]
            if coding.weight_shape is not None:
                turn = rotation(tokens.shape[1], coding.rotation_seed)
                rows = torch.cat([self.modules[name].weight.detach().float() for name in members])
                padded = F.pad(rows.to(tokens.device), (0, tokens.shape[1] - rows.shape[1]))
                kinds.append((over_rows(turn.apply, padded), coding.weight_shape))
            return learn(kinds, coding.reflections, coding.seed)

        return learned

    def _run(self, groups: InputGroups, collectors: dict[str, InputCollector]) -> None:
        """Fills both: the first windows show which Linears share an input, after that one of each group is watched."""
        steps = self.stack.run(self.index)
        with groups.watch(self.modules):
            numbers = next(steps)
        seed, device = self.coding.seed, self.stack.device
        for leader in groups.members:
            features = self.modules[leader].in_features
            collectors[leader] = InputCollector(features, self.per_window, seed, device, self.first)
            collectors[leader].take(groups.inputs.pop(leader))
        self._flush(numbers, collectors)
        with watch_all(collectors, self.modules):
            for numbers in steps:
                self._flush(numbers, collectors)

    def _flush(self, numbers: range, collectors: dict[str, InputCollector]) -> None:
        for number in numbers:
            self._refuse_unusable(number)
        for collector in collectors.values():
            collector.flush()

    def _refuse_unusable(self, number: int) -> None:
        if not torch.isfinite(self.stack.hidden[number]).all():
            raise NestQuantError(
                f"the output of {self.name} has NaN or infinite values on calibration window {self.first + number}",
                "calibration stopped",
                "check the model's weights, or load it in a wider dtype",
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
        return fit_cache(gathered, shape, self.coding.seed, self.coding.rotation_seed, self.coding.centering)
