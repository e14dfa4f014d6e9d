"""One streaming pass over the layers of a model: yields each layer's statistics as soon as they are known."""

from collections.abc import Iterator

from torch import Tensor

from ..base.errors import NestQuantError
from ..models.weights import Weights
from ..parallel.team import team
from .hidden import HiddenStates
from .layer import MeasuredLayer
from .observer import TOKENS, KVObserver
from .request import Coding
from .sequential import STATES_SHARE, Sequel, run_quantized, sequential_statistics
from .stack import LayerStack
from .statistics import NOISE_TOKENS, LayerStatistics


def collect(
    weights: Weights,
    windows: Tensor,
    coding: Coding,
    skip: list[bool] | None = None,
    hidden: HiddenStates | None = None,
    sequel: Sequel | None = None,
) -> Iterator[LayerStatistics | None]:
    """Statistics of each decoder layer in order, which is held until the next one is asked for.

    The processes of a team each run their share of the windows and all get the statistics of all windows.

    Args:
        weights: weights of a model in evaluation mode; its layers are left unchanged.
        windows: (windows, tokens) int64, all of them on every process.
        coding: what to fit.
        skip: layers whose statistics are not needed; None is yielded for them.
        hidden: where hidden states are kept, empty.
        sequel: quantizes the layers on the way, so that each is measured behind those before it as they will be.

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
    behind = None if sequel is None else stack.twin(sequel.hidden(STATES_SHARE))
    observer.watching = coding.kv_shape is not None
    per_window = -(-NOISE_TOKENS // len(windows))
    for index in range(len(weights.decoder.layers)):
        with weights.layer(index):
            layer = MeasuredLayer(stack, index, coding, own.start, per_window)
            if skip is not None and skip[index]:
                if not all(skip[index:]):
                    layer.pass_by()  # the next layers need the hidden states behind this one
                    if sequel is not None and behind is not None:
                        run_quantized(behind, index, sequel.quantized(index))
                yield None
            elif sequel is not None and behind is not None:
                yield sequential_statistics(layer, behind, sequel)
            else:
                yield layer.statistics()
