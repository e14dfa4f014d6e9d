"""Scores the models of a comparison and their reference window by window, and keeps every window's sums."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.progress import logger, track
from ..checkpoint.load import load_model
from ..evaluation.perplexity import Totals, check_fit, score_window
from ..models.source import Source, weight_files
from ..modules.resident import set_resident_if_quantized
from .saved_scores import ComparisonState

if TYPE_CHECKING:
    from torch import Tensor

_SHARE = 0.5  # of the free memory that the models of one pass may take
_GROWTH = 2.2  # of a packed model's files when its weights are held in int8


@dataclass(frozen=True)
class Scoring:
    """How models are scored.

    Attributes:
        windows: (windows, seqlen) int64 token ids.
        dtype: dtype that models are loaded in, or "auto".
        device: a torch device.
        resident: form of quantized weights in memory: "packed", "int8" or "auto".
    """

    windows: "Tensor"
    dtype: str
    device: str
    resident: str


def score_models(
    baseline: Source, models: Mapping[str, Source], keys: Mapping[str, Any], scoring: Scoring, state: ComparisonState
) -> dict[str, list[Totals]]:
    """Scores every window with every model; what the state has under the same key is not scored again.

    As many models as fit the memory see a window together, so that the reference runs once for all of them.

    Args:
        baseline: the reference.
        models: packed checkpoints by name.
        keys: what the sums of each model depend on, JSON-ready, by name.
        scoring: windows, dtype, device and form of the weights.
        state: run of the comparison, whose steps have the sums (`scores_step`).

    Returns:
        the sums of each window in order, by name.
    """
    import torch

    known = {name: _known(state, name, keys[name]) for name in models}
    missing = [name for name in models if len(known[name]) < len(scoring.windows)]
    if missing:
        original = load_model(baseline, scoring.dtype, scoring.device)
        for names in _passes(missing, models, scoring.device):
            logger.info("scoring %s against the reference", ", ".join(names))
            loaded = {name: load_model(models[name], scoring.dtype, scoring.device) for name in names}
            for model in loaded.values():
                set_resident_if_quantized(model, scoring.resident)
                check_fit(model, original, scoring.windows)
            for number in track(range(len(scoring.windows)), "scoring windows"):
                todo = [name for name in names if len(known[name]) <= number]
                if not todo:
                    continue
                with torch.no_grad():  # as in `perplexity.score`
                    window_totals = score_window(
                        [loaded[name] for name in todo], original, scoring.windows[number], number
                    )
                for name, totals in zip(todo, window_totals, strict=True):
                    known[name].append(totals)
                    state.put(
                        scores_step(name, keys[name]), keys[name], [dataclasses.asdict(sums) for sums in known[name]]
                    )
            del loaded
    return {name: totals[: len(scoring.windows)] for name, totals in known.items()}


def _known(state: ComparisonState, name: str, key: Any) -> list[Totals]:
    return [Totals(**window) for window in state.get(scores_step(name, key), key) or []]


def scores_step(name: str, key: Mapping[str, Any]) -> str:
    """Name of the step of a comparison that has the sums of the windows of one text.

    Args:
        name: name of the recipe.
        key: what the sums depend on, with the hash of the scored tokens as "tokens_sha256".
    """
    return f"scores/{name}@{key['tokens_sha256'][:12]}"


def _passes(names: Sequence[str], models: Mapping[str, Source], device: str) -> list[list[str]]:
    """Splits the names into passes whose models fit the free memory together; a pass has at least one."""
    import torch

    from ..base.device import free_memory

    room = _SHARE * free_memory(torch.device(device))
    passes: list[list[str]] = []
    left = 0.0
    for name in names:
        size = _GROWTH * sum(path.stat().st_size for path in weight_files(models[name]))
        if not passes or size > left:
            passes.append([])
            left = room
        passes[-1].append(name)
        left -= size
    return passes
