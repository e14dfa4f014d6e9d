"""From a model's name to a packed checkpoint: load, calibrate and quantize layer by layer, write."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..calibration.collect import Coding, collect
from ..calibration.statistics import LayerStatistics
from ..calibration.store import Calibration, CalibrationWriter, refuse_filled, to_device
from ..calibration.text import Windows, load_text, sample_windows
from ..checkpoint.output import Output, refuse_foreign
from ..errors import NestQuantError
from ..models.source import Source, fingerprint, load_model, load_tokenizer
from ..models.structure import Decoder, find_decoder, linears, refuse_stray_matrices
from ..modules.cache import plain_layers
from ..progress import track
from .finish import write_rest
from .layer import QuantizedMatrix, quantize_group, refuse_unusable_weights
from .parts import LayerPart, part_of
from .recipe import Recipe


@dataclass(frozen=True)
class Subject:
    """A loaded model that is to be quantized."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    decoder: Decoder


def open_subject(source: Source, device: str) -> Subject:
    """Loads a model and refuses what cannot be quantized.

    Raises:
        NestQuantError: a packed checkpoint, an unsupported kind of model, or weights that are not finite.
    """
    if source.kind == "packed":
        raise NestQuantError(
            f"{source.path} is a packed checkpoint already", "nothing was quantized", "give the original model"
        )
    model = load_model(source, device=device)
    if getattr(model.config, "quantization_config", None) is not None:
        raise NestQuantError(
            f"the weights of {source.name} are quantized already", "nothing was quantized", "give the original model"
        )
    decoder = find_decoder(model)
    refuse_stray_matrices(model, decoder)
    refuse_unusable_weights(model)
    return Subject(source, model, load_tokenizer(source), decoder)


def calibrate(source: Source, recipe: Recipe, folder: Path, device: str) -> dict[str, Any]:
    """Calibrates a model and saves Hessians, noise and codes.

    Returns:
        what calibration.json says of it, less the layers.
    """
    refuse_filled(folder)
    subject = open_subject(source, device)
    _refuse_other_caches(subject, recipe)
    windows = read_windows(subject, recipe)
    about = _about(subject, recipe) | _text_of(windows)
    writer = CalibrationWriter(folder, about)
    stream = collect(subject.model, subject.decoder, windows.ids, _coding(recipe))
    try:
        for layer in track(stream, "calibrating layers", total=len(subject.decoder.layers)):
            assert layer is not None
            writer.add(layer)
        writer.finish()
    except BaseException:
        writer.discard()  # half a calibration is of no use, and the next run wants an empty folder
        raise
    return about


def quantize(
    source: Source,
    recipe: Recipe,
    folder: Path,
    device: str,
    calibration: Path | None = None,
    resume: bool = True,
    explicit: Collection[str] = (),
) -> dict[str, Any]:
    """Quantizes a model into a packed checkpoint.

    Args:
        source: the model.
        recipe: what to quantize and how.
        folder: the output.
        device: where to compute.
        calibration: a folder of `calibrate`; None calibrates on the way.
        resume: go on with an unfinished run of the same key.
        explicit: settings of the recipe that the user asked for by name; those of the text must be the calibration's.

    Returns:
        the report, as in quantization_report.json.

    Raises:
        NestQuantError: see the functions called.
    """
    start = time.monotonic()
    refuse_foreign(folder)
    stored = None if calibration is None else Calibration(calibration)
    subject = open_subject(source, device)
    _refuse_other_caches(subject, recipe)
    about = _about(subject, recipe)
    if stored is not None:
        stored.check(
            about | {name: getattr(recipe, name) for name in ("dataset", "samples", "seqlen") if name in explicit}
        )
        text, windows = {key: stored.about.get(key) for key in TEXT_KEYS}, None
    else:
        windows = read_windows(subject, recipe)
        text = _text_of(windows)
    depth = len(subject.decoder.layers)
    output = Output(folder, {"recipe": recipe.to_dict(), **about, **text}, depth + 1, resume)
    try:
        parts = _quantize_layers(subject, recipe, output, stored, windows)
    except NestQuantError:
        if output.done(0) is None:
            output.discard()  # nothing to go on from
            folder.rmdir()
        raise
    return write_rest(output, subject.model, subject.tokenizer, recipe, parts, {**about, **text}, start)


def _quantize_layers(
    subject: Subject, recipe: Recipe, output: Output, stored: Calibration | None, windows: Windows | None
) -> list[LayerPart]:
    """Writes every layer that is not written yet; the parts of all."""
    depth = len(subject.decoder.layers)
    parts = [LayerPart.from_dict(done) if (done := output.done(index)) else None for index in range(depth)]
    stream = _statistics(subject, recipe, stored, None if windows is None else windows.ids, parts)
    for index, statistics in enumerate(track(stream, "quantizing layers", total=depth)):
        if parts[index] is None:
            assert statistics is not None
            tensors, part = quantize_layer(subject, index, statistics, recipe)
            output.write(index, tensors, part.to_dict())
            parts[index] = part
    return [part for part in parts if part is not None]


def quantize_layer(
    subject: Subject, index: int, statistics: LayerStatistics, recipe: Recipe
) -> tuple[dict[str, Tensor], LayerPart]:
    """Packs one decoder layer: its tensors by full name, and what is said of it."""
    prefix = subject.decoder.layer_name(index)
    modules = linears(subject.decoder.layers[index])
    shape = recipe.shape("weight")
    packed: dict[str, QuantizedMatrix] = {}
    if shape is not None:
        for item in statistics.inputs.values():
            packed |= quantize_group(modules, item, shape, recipe.seed, recipe.damping, prefix)
    return part_of(prefix, subject.decoder.layers[index], statistics, packed, recipe)


def _refuse_other_caches(subject: Subject, recipe: Recipe) -> None:
    """Raises NestQuantError when keys and values are to be packed and the model's cache keeps something else."""
    if recipe.shape("kv") is not None:
        plain_layers(subject.model.config.get_text_config(decoder=True))


def read_windows(subject: Subject, recipe: Recipe) -> Windows:
    """Calibration windows of a recipe."""
    text = load_text(recipe.dataset, "train")
    return sample_windows(text, subject.tokenizer, recipe.seqlen, recipe.samples, recipe.seed)


def _statistics(
    subject: Subject, recipe: Recipe, stored: Calibration | None, windows: Tensor | None, parts: list[LayerPart | None]
) -> Iterator[LayerStatistics | None]:
    """Statistics of each layer, from disk or on the way; None for a layer that is done already."""
    done = [part is not None for part in parts]
    if stored is None:
        assert windows is not None
        yield from collect(subject.model, subject.decoder, windows, _coding(recipe), done)
        return
    device = next(subject.model.parameters()).device
    for index, finished in enumerate(done):
        yield None if finished else to_device(stored.layer(index, recipe.shape("act"), recipe.shape("kv")), device)


TEXT_KEYS = ("dataset", "text_sha256", "tokens_sha256", "samples", "seqlen")


def _text_of(windows: Windows) -> dict[str, Any]:
    values = (windows.dataset, windows.text_sha256, windows.sha256, windows.samples, windows.seqlen)
    return dict(zip(TEXT_KEYS, values, strict=True))


def _about(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """What a calibration must share with the quantization that uses it."""
    shapes = {part: recipe.shape(part) for part in ("act", "kv")}
    codes = {f"{part}_code": None if shape is None else [shape.q, shape.k] for part, shape in shapes.items()}
    return {"model_sha256": fingerprint(subject.source), "seed": recipe.seed, **codes, "nestquant": __version__}


def _coding(recipe: Recipe) -> Coding:
    return Coding(recipe.shape("act"), recipe.shape("kv"), recipe.seed)
