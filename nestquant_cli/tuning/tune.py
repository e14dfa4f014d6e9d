"""Tunes a packed checkpoint: its continuous numbers (row scales, gains of norms, biases) move, its words stay.

The packed model runs as it will run, with rounded activations, keys and values, and so does the original. Adam lowers
the KL divergence between their next-token distributions on windows of text, through straight-through gradients.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..base.processor import machine
from ..base.progress import steps
from ..checkpoint.load import load_model
from ..checkpoint.manifest import CONFIG, MANIFEST
from ..checkpoint.output import Output
from ..checkpoint.read import open_checkpoint, read_layout, read_quantization_config
from ..codecs.registry import CODECS
from ..models.source import Source, fingerprint, load_config, load_tokenizer, resolve
from ..modules.resident import set_resident
from ..storage.files import sha256_file
from ..storage.records import Snapshot
from ..storage.resume import refuse_foreign
from .distill import Distillation
from .held_out import TuneText, TuneWindows, read_tune_windows
from .optimizer import TuneState
from .parameters import Tunables
from .settings import TuneSettings
from .tuned_checkpoint import shards_of, write_tuned

_TUNABLE = f"a method among {', '.join(name for name, codec in CODECS.items() if codec.tunable)}"
STATE = "tuning.pt"
SAVE_SECONDS = 60.0  # between two snapshots

logger = logging.getLogger("nestquant")


def tune(
    checkpoint: Path,
    original: Source,
    settings: TuneSettings,
    folder: Path,
    device: str,
    text: TuneText,
    seed: int = 0,
    resume: bool = True,
    output: Output | None = None,
) -> dict[str, Any]:
    """Tunes a packed checkpoint into a new one.

    Args:
        checkpoint: folder of the packed checkpoint, which is not changed.
        original: the model that it was made from.
        settings: steps, batch, rate and held-out windows.
        folder: output folder.
        device: a torch device.
        text: text to tune on; its "train" split where it has splits.
        seed: seed of the order of windows and the choice of those held out.
        resume: resume an unfinished run of the same key.
        output: output of a run in the same folder that ends with this tuning; None where the tuning is a whole run.

    Returns:
        the report, as in quantization_report.json, with the seconds that this process took added.

    Raises:
        NestQuantError: the checkpoint is tuned already or was made from another model, the text is too short, or the
            loss is not finite.
    """
    start = time.monotonic()
    if output is None:
        refuse_foreign(folder, CONFIG)
    shards = shards_of(open_checkpoint(checkpoint))
    _refuse_others(checkpoint, original)
    source = resolve(str(checkpoint))
    windows = read_tune_windows(text, load_tokenizer(source), load_config(source), settings, seed)
    about = {**settings.to_dict(), **windows.about, "seed": seed}
    key = {"checkpoint_sha256": sha256_file(checkpoint / MANIFEST), "tune": about, "device": device}
    if output is None:
        output = Output(folder, key | {"torch": torch.__version__, **machine(device)}, len(shards), resume)
    with output.divided(len(shards)) as output:
        report = output.finished()
        if report is None:
            dtype = read_quantization_config(checkpoint)["recipe"].get("dtype", "auto")
            student, teacher = load_model(source, "auto", device), load_model(original, dtype, device)
            set_resident(student, "int8")
            tunables = Tunables(student)
            distillation = Distillation(teacher, student, read_layout(checkpoint))
            state = descend(tunables, distillation, windows, settings, output.state.snapshot(STATE))
            tunables.set(state.best)
            report = write_tuned(output, checkpoint, tunables.tensors(), teacher, about, state.record())
    return report | {"seconds": round(time.monotonic() - start, 1)}


def descend(
    tunables: Tunables, distillation: Distillation, windows: TuneWindows, settings: TuneSettings, snapshot: Snapshot
) -> TuneState:
    """Takes all the steps, or those that are left.

    Args:
        tunables: the parameters, which end as after the last step.
        distillation: the loss.
        windows: windows of the text.
        settings: steps, batch, rate and held-out windows.
        snapshot: file of the saved state, which is resumed where it exists.
    """
    state = TuneState(len(tunables.theta), settings)
    saved_state = snapshot.load()
    if saved_state is not None:
        state.load_state_dict(saved_state)
    tunables.set(state.theta)
    saved = time.monotonic()
    with steps("tuning", settings.steps) as advance:
        advance(state.done)
        if not state.checks:
            _check(state, distillation, windows.held_out, settings)
        while state.done < settings.steps:
            losses = []
            for ids in windows.of_step(state.done, settings.batch):
                loss = distillation.loss(ids)
                (loss / settings.batch).backward()
                losses.append(float(loss.detach()))
            _refuse_infinite(losses)
            state.step(tunables.take_gradient(), sum(losses) / settings.batch)
            tunables.set(state.theta)
            advance(1)
            if settings.is_check(state.done):
                _check(state, distillation, windows.held_out, settings)
            if time.monotonic() - saved > SAVE_SECONDS or state.done == settings.steps:
                snapshot.save(state.state_dict())
                saved = time.monotonic()
    return state


def _check(state: TuneState, distillation: Distillation, held_out: Tensor, settings: TuneSettings) -> None:
    tuned_on = state.mean_loss
    loss = distillation.score(held_out)
    _refuse_infinite([loss])
    state.check(loss)
    seen = "" if tuned_on is None else f", {tuned_on:.4f} on the windows since the last check"
    logger.info("after %d of %d steps: KL %.4f on held-out windows%s", state.done, settings.steps, loss, seen)


def _refuse_infinite(losses: list[float]) -> None:
    if not all(math.isfinite(loss) for loss in losses):
        raise NestQuantError(
            "the KL divergence from the original is not finite", "the tuning stopped", "use a smaller rate"
        )


def _refuse_others(checkpoint: Path, original: Source) -> None:
    """Raises NestQuantError unless the checkpoint is untuned and was made from the original."""
    recipe = read_quantization_config(checkpoint).get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    if recipe.get("tune") is not None:
        raise NestQuantError(
            f"{checkpoint} is tuned already", "it was not tuned again", "tune the checkpoint it was made from"
        )
    shape = read_layout(checkpoint).weight_shape
    if shape is not None and not CODECS[shape.codec].tunable:
        raise NestQuantError(
            f"{checkpoint} has weights of {shape.codec}, whose scales cannot be tuned",
            "it was not tuned",
            f"quantize with {_TUNABLE}",
        )
    sha256 = fingerprint(original)
    if recipe.get("model_sha256", sha256) != sha256:
        raise NestQuantError(
            f"{checkpoint} was not made from {original.name}", "it was not tuned", "give the model it was made from"
        )
