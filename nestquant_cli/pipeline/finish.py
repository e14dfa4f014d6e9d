"""The end of a quantization: tensors outside the decoder layers, tokenizer, report, config.json."""

import logging
import platform
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ..base.version import __version__
from ..checkpoint.output import Output
from ..integrations.transformers.config_entries import auto_map, quantization_config, write_loader
from ..models.auto_class import auto_names
from ..models.config_file import generation_settings, model_config
from ..models.processor_files import has_processor, processor_files
from ..models.small_matrices import Staying, staying
from ..models.structure import Decoder, find_decoder, linears
from ..models.tables import find_tables, without_tables
from ..storage.files import write_json
from .layer_part import LayerPart, join_layouts
from .original_model import OriginalModel
from .recipe import SIXTEEN, Recipe
from .tables import TablesPart, quantize_tables

logger = logging.getLogger("nestquant")


def write_rest(
    output: Output,
    original: OriginalModel,
    recipe: Recipe,
    parts: list[LayerPart],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Completes the checkpoint and returns its report.

    Args:
        output: the output, with all layers written.
        original: the original model; its tensors outside the decoder layers, tokenizer and processor are written here.
        recipe: settings of this quantization.
        parts: share of each layer in layout and report, in order.
        origin: what the checkpoint was made from: hashes of model and calibration text, and the model's Hub id.
    """
    weights, model = original.weights, original.weights.model
    config, last = model_config(model), output.parts - 1
    done = output.done(last)
    if done is None:
        done = _write_last(output, original, recipe)
    tables = TablesPart.from_dict(done)
    stays = staying(weights.decoder, uncalled_linears(weights.decoder, parts))
    report = quantization_report(recipe.to_dict() | origin, recipe, parts, stays, tables)
    layout = join_layouts(recipe, parts, tables)
    section = quantization_config(layout.to_dict(), report["recipe"], report["bits"])
    config |= {"auto_map": auto_map(auto_names(model.config)), "quantization_config": section}
    output.add_files(lambda folder: _add_files(folder, original))
    output.finish(config, report)
    return report


def _write_last(output: Output, original: OriginalModel, recipe: Recipe) -> dict[str, Any]:
    """Writes the last shard, what lies outside the decoder layers, and returns what it records of its tables."""
    weights = original.weights
    found = find_tables(weights.model, *recipe.wants_tables)
    tensors, part = quantize_tables(found, weights.fetch, recipe)
    info = part.to_dict()
    output.write(output.parts - 1, without_tables(other_tensors(weights.model), found) | tensors, info, weights.pieces)
    return info


def _add_files(folder: Path, original: OriginalModel) -> None:
    model = original.weights.model
    if has_processor(model.config):
        for file in processor_files(original.source):  # those of its tokenizer are among them
            shutil.copyfile(file, folder / file.name)
    else:
        original.tokenizer.save_pretrained(folder)
    write_loader(folder)
    if model.generation_config is not None:
        # not by its save_pretrained, which refuses settings that published models have, after hours of work
        write_json(folder / "generation_config.json", generation_settings(model.generation_config))


def quantization_report(
    settings: dict[str, Any], recipe: Recipe, parts: list[LayerPart], stays: Staying, tables: TablesPart
) -> dict[str, Any]:
    """The contents of quantization_report.json.

    Args:
        settings: the recipe as it was used, with the origin of the checkpoint.
        recipe: settings of this quantization.
        parts: share of each layer, in order.
        stays: matrices of the decoder layers that stay in 16 bits; left out where there are none.
        tables: share of the embedding and the head.
    """
    kept = {"staying": stays.to_dict()} if stays.matrices else {}
    return {
        "recipe": settings,
        "bits": {part: recipe.bits(part) for part in ("weight", "act", "kv")}
        | _without_cache(recipe, parts)
        | recipe.table_bits(),
        "versions": versions(),
        "matrices": {name: record for part in parts for name, record in part.report.items()} | tables.report,
    } | kept


def uncalled_linears(decoder: Decoder, parts: list[LayerPart]) -> dict[int, list[str]]:
    """Names in its layer of the Linears that no calibration window called, by number of the layer; none where neither
    weights nor inputs are quantized."""
    return {
        index: [name for name in linears(layer) if f"{decoder.layer_name(index)}.{name}" not in part.layout.linears]
        for index, (layer, part) in enumerate(zip(decoder.layers, parts, strict=True))
        if part.layout.linears
    }


def _without_cache(recipe: Recipe, parts: list[LayerPart]) -> dict[str, float]:
    """The bits of keys and values where no layer keeps any in a cache; says which layers do, if not all."""
    coded = [any(part.layout.cache) for part in parts]
    if recipe.shape("kv") is None or all(coded):
        return {}
    logger.info(
        "keys and values of %d of %d layers are coded; what the other layers keep stays as it is",
        sum(coded),
        len(coded),
    )
    return {} if any(coded) else {"kv": SIXTEEN}


def run_figures(start: float) -> dict[str, Any]:
    """Seconds since `start`, a value of time.monotonic(), and the peak memory of this process in bytes."""
    return {
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def other_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors outside the decoder layers by name; of tied ones only the source. They are on the meta device where the
    model is read layer by layer."""
    prefix = find_decoder(model).prefix + "."
    tied = set(model.all_tied_weights_keys)
    return {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix) and name not in tied
    }


def versions() -> dict[str, str]:
    """Versions of the programs that the bytes of a result depend on."""
    return {
        "nestquant": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
