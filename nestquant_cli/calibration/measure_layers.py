"""Measures all decoder layers in one pass over the text; each layer's statistics come as soon as they are known."""

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from ..base.errors import NestQuantError
from ..models.weights import Weights
from ..parallel.team import team
from .fit_settings import FitSettings
from .hidden_states import DEFAULT_BUDGET, HiddenStates
from .kv_observer import TOKENS, KVObserver
from .layer_measurement import LayerMeasurement
from .layer_stack import LayerStack
from .sequential import STATES_SHARE, QuantizerCallbacks, run_quantized, sequential_statistics
from .statistics import NOISE_TOKENS, LayerStatistics


def measure_layers(
    weights: Weights,
    windows: Tensor,
    settings: FitSettings,
    skip: list[bool] | None = None,
    hidden: HiddenStates | None = None,
    callbacks: QuantizerCallbacks | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Iterator[Iterator[LayerStatistics] | None]:
    """Yields the statistics of each decoder layer in order, and holds its weights until the next one is asked for.

    The statistics of a layer come in parts: experts whose sums do not fit into memory together are measured one block
    after the other. A part is for the caller to use and to let go of before the next one. The processes of a team each
    run their share of the windows and all get the statistics of all windows.

    Args:
        weights: weights of a model in evaluation mode; they are not changed.
        windows: (windows, tokens) int64, all of them on every process.
        settings: codes and rotation to fit.
        skip: layers whose statistics are not needed; None is yielded for them.
        hidden: empty store for the hidden states; None keeps them in memory up to the default budget.
        callbacks: functions that quantize the layers on the way, for a sequential calibration; else None.
        budget: bytes of the sums of experts that may be in memory at a time; the result does not depend on it.

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
    observer = KVObserver(config, TOKENS / max(1, windows.numel()), settings.key_scales)
    share = group.share(len(windows))
    stack = LayerStack(weights, windows[share.start : share.stop], observer, hidden)
    behind = None if callbacks is None else stack.twin(callbacks.hidden(STATES_SHARE))
    observer.watching = settings.kv_shape is not None
    per_window = -(-NOISE_TOKENS // len(windows))
    for index in range(len(weights.decoder.layers)):
        with weights.layer(index):
            layer = LayerMeasurement(stack, index, settings, share.start, per_window)
            if skip is not None and skip[index]:
                if not all(skip[index:]):
                    layer.run_unmeasured()  # the next layers need the hidden states behind this one
                    if callbacks is not None and behind is not None:
                        run_quantized(behind, index, callbacks.quantized(index))
                yield None
                continue
            layer.find_row_parallel()
            if callbacks is not None and behind is not None:
                yield iter([sequential_statistics(layer, behind, callbacks)])
            else:
                parts = layer.parts(budget)
                yield parts
                deque(parts, maxlen=0)  # the hidden states are behind the layer after its last part
