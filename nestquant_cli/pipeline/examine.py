"""What can be known of a model before its weights are read: whether it can be quantized, and what of it.

`quantize`, `--plan`, `calibrate`, `compare` and a quantization while loading all ask here first, so each of them
refuses the same models in the same words.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..base.errors import NestQuantError
from ..calibration.all_experts import refuse_undriven
from ..calibration.between_layers import Operations, refuse_computed
from ..calibration.recorder import Recorder
from ..models.config_file import generation_settings, model_config
from ..models.expert_families import expert_families
from ..models.language_model import runner
from ..models.load import read_generation_config
from ..models.other_methods import refuse_quantized
from ..models.probe import Probe, probe, without_numbers
from ..models.size_limits import meta_model
from ..models.small_matrices import refuse_stray_matrices
from ..models.source import Source, load_config
from ..models.structure import Decoder, open_decoder
from ..modules.cache_codes import check_head_size
from ..modules.packed_layers import can_pack
from .recipe import Recipe
from .skipped_layers import skipped_layers
from .tables import refuse_tables


@dataclass(frozen=True)
class Examined:
    """A model on the meta device that can be quantized, as far as its configuration tells.

    Attributes:
        model: the model, its decoder layers opened.
        decoder: its decoder layers.
        probe: what a text reaches in it; None where that is not known without its weights.
    """

    model: PreTrainedModel
    decoder: Decoder
    probe: Probe | None


def examine(source: Source, recipe: Recipe, dtype: str = "auto") -> Examined:
    """Builds a model without its weights, and refuses what cannot be quantized.

    Args:
        source: the model.
        recipe: settings of the quantization.
        dtype: dtype that the model is to be loaded in; "auto" is its own, and bfloat16 for GGUF.

    Raises:
        NestQuantError: a packed checkpoint, weights of another method, or a model of a kind that is not supported.
    """
    if source.kind == "packed":
        raise NestQuantError(
            f"{source.name} is a packed checkpoint already", "nothing was quantized", "give the original model"
        )
    refuse_quantized(source)
    config = load_config(source)
    stored = torch.bfloat16 if source.gguf_file else getattr(config, "dtype", None)
    model = meta_model(config, stored if dtype == "auto" else getattr(torch, dtype))
    read_generation_config(model, Path(source.path))
    return examine_model(model, recipe)


def examine_model(model: PreTrainedModel, recipe: Recipe) -> Examined:
    """The same for a model on the meta device, whose decoder layers are opened in place.

    Raises:
        NestQuantError: a model of a kind that is not supported.
    """
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)
    if recipe.sequential and any(expert_families(layer) for layer in decoder.layers):
        raise NestQuantError(
            "a sequential calibration measures a layer's inputs one after the other, and experts share one",
            "nothing was quantized",
            "leave sequential out",
        )
    if recipe.all_experts:
        refuse_undriven(decoder.layers, decoder.prefix)
    refuse_tables(model, recipe)
    seen = probe(model, decoder)
    _refuse_order(model, decoder)
    skipped_layers(recipe.kv_skip_layers, len(decoder.layers))
    if recipe.shape("kv") is not None:
        _refuse_cache(model, decoder, seen)
    model_config(model)
    if model.generation_config is not None:
        generation_settings(model.generation_config)
    return Examined(model, decoder, seen)


def _refuse_order(model: PreTrainedModel, decoder: Decoder) -> None:
    """Raises NestQuantError where a text does not pass the layers one after the other, as far as that shows without
    numbers."""
    _, runs_text = runner(model, decoder.prefix)
    recorder = Recorder(decoder, lambda window: runs_text(input_ids=window, use_cache=False))
    try:
        with without_numbers(decoder) as ids, Operations() as operations:
            recording = recorder.record(ids)
        refuse_computed(recording, operations, [decoder.layer_name(index) for index in range(len(decoder.layers))])
    except NestQuantError:
        raise
    except Exception:  # of any kind, where the model needs numbers; calibration sees more
        return


def _refuse_cache(model: PreTrainedModel, decoder: Decoder, seen: Probe | None) -> None:
    """Raises NestQuantError where keys and values that layers keep cannot be packed."""
    kept = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    if len(kept) != len(decoder.layers):
        raise NestQuantError(
            f"{type(model).__name__} has {len(decoder.layers)} decoder layers, its configuration makes a cache of "
            f"{len(kept)}",
            "keys and values cannot be quantized",
            "quantize with --kv-bits 16",
        )
    heads = {} if seen is None or seen.heads is None else seen.heads
    for index, sizes in heads.items():
        for size in sizes if can_pack(kept[index]) else ():
            check_head_size(size)
