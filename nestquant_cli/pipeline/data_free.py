"""A model quantized in memory, without calibration: what `from_pretrained` does with a NestQuantConfig(bits=…).

Without text there is no Hessian, so weights are rounded plainly, as with H = I. Behind the rotation the inputs of
Linears, keys and values look Gaussian, so codes for them are fitted to Gaussian vectors.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..base.progress import track
from ..calibration.input_groups import InputGroups
from ..calibration.kv_observer import KVObserver
from ..calibration.row_parallel import Divided, Following
from ..calibration.statistics import InputStatistics, LayerStatistics
from ..codecs.registry import fit_heads
from ..codecs.vectors import VectorCode
from ..models.expert_families import expert_families
from ..models.small_matrices import refuse_stray_matrices, staying
from ..models.structure import Decoder, linears, open_decoder
from ..models.tables import find_tables
from ..modules.attach import attach
from ..modules.cache_codes import CacheCodes, check_head_size
from ..modules.cache_hooks import give_cache
from ..modules.inputs import padded_size
from ..modules.layout import Layout
from ..parallel.team import Team
from .finish import quantization_report, uncalled_linears
from .layer_matrices import quantize_matrices
from .layer_part import LayerPart, join_layouts, part_of
from .recipe import SIXTEEN, Recipe
from .tables import quantize_tables

_SAMPLE = 1 << 16  # entries of the Gaussian vectors that a code is fitted to
_PROBE = 8  # tokens of the forward that shows which Linears share an input; any number serves


def data_free_recipe(
    weight_bits: float,
    act_bits: float,
    kv_bits: float,
    seed: int,
    tensor_parallel: int = 1,
    embedding_bits: float = SIXTEEN,
    head_bits: float = SIXTEEN,
) -> Recipe:
    """A recipe that needs no text: no feedback, no noise of inputs, no centers.

    Args:
        weight_bits, act_bits, kv_bits: 2 to 8 in eighths, or 16 to leave that part alone.
        seed: seed of rotation signs and fits.
        tensor_parallel: number of parts of the inputs of row-parallel matrices.
        embedding_bits, head_bits: 4 to 8 in eighths, or 16 to leave that table alone.
    """
    without: dict[str, Any] = {"feedback": "none", "qa": False, "centering": False, "dataset": "none"}
    settings: dict[str, Any] = {"weight_bits": weight_bits, "act_bits": act_bits, "kv_bits": kv_bits, "seed": seed}
    settings |= {"embedding_bits": embedding_bits, "head_bits": head_bits}
    return Recipe(**settings, **without, tensor_parallel=tensor_parallel)


def quantize_loaded(model: PreTrainedModel, recipe: Recipe) -> tuple[Layout, dict[str, Any]]:
    """Replaces the Linears of a loaded model's decoder layers by packed ones, and packs its cache.

    Args:
        model: a model in 16 or 32 bits, on any devices.
        recipe: what `data_free_recipe` returned.

    Returns:
        the layout for config.json, and the report of the quantization.

    Raises:
        NestQuantError: a model of an unsupported kind, or one with weights that are not in memory.
    """
    decoder = open_decoder(model)
    refuse_stray_matrices(model, decoder)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise NestQuantError(
            "some weights are offloaded",
            "the model was not quantized",
            "use 'nestquant quantize', which streams layers",
        )
    tensors, parts = dict[str, Tensor](), list[LayerPart]()
    observer = KVObserver(model.config.get_text_config(decoder=True), 1.0)
    groups, row_parallel = _groups(model, decoder, observer, recipe)
    for index, layer in enumerate(track(decoder.layers, "rounding layers", total=len(decoder.layers))):
        cache = _cache_codes(observer.sizes.get(index), recipe)
        found = groups[index], row_parallel[index]
        of_layer, part = _quantize_layer(decoder.layer_name(index), layer, *found, cache, recipe)
        tensors |= of_layer
        parts.append(part)
    wanted = find_tables(model, *recipe.wants_tables)
    of_tables, tables = quantize_tables(wanted, model.get_parameter, recipe)
    tensors |= of_tables
    layout, stays = join_layouts(recipe, parts, tables), staying(decoder, uncalled_linears(decoder, parts))
    attach(model, layout)
    for name in (*layout.linears, *layout.tables):
        for leaf, buffer in model.get_submodule(name).named_buffers(recurse=False):
            if f"{name}.{leaf}" in tensors:  # others are no part of the code
                buffer.copy_(tensors[f"{name}.{leaf}"])
    return layout, quantization_report(recipe.to_dict() | {"samples": 0, "seqlen": 0}, recipe, parts, stays, tables)


def _quantize_layer(
    prefix: str,
    layer: nn.Module,
    groups: InputGroups,
    row_parallel: frozenset[str],
    cache: CacheCodes | None,
    recipe: Recipe,
) -> tuple[dict[str, Tensor], LayerPart]:
    modules = linears(layer)

    def item(members: Sequence[str], source: str | None = None) -> InputStatistics:
        order, device = padded_size(modules[members[0]].in_features), modules[members[0]].weight.device
        parts = recipe.tensor_parallel if row_parallel.issuperset(members) else 1
        code, ones = _gaussian_code(recipe, "act", order // parts), torch.ones(order, device=device)
        noise = torch.zeros(order, device=device)
        return InputStatistics(tuple(members), ones, noise, code, source=source, parts=parts)

    inputs = {leader: item(members) for leader, members in groups.members.items()}
    for shared in groups.experts:
        inputs |= {shared.members(e)[0]: item(shared.members(e), shared.source) for e in range(shared.experts)}
    statistics = LayerStatistics(inputs, cache)
    packed = quantize_matrices(modules, statistics, recipe, prefix, Team())
    return part_of(prefix, layer, statistics, packed, recipe)


@torch.no_grad()
def _groups(
    model: PreTrainedModel, decoder: Decoder, observer: KVObserver, recipe: Recipe
) -> tuple[list[InputGroups], list[frozenset[str]]]:
    """The Linears with the same input in each layer, and names of the row-parallel ones if their inputs are divided, by
    watching one forward; the observer sees keys and values."""
    watchers, parts = [InputGroups() for _ in decoder.layers], recipe.tensor_parallel
    with ExitStack() as stack:
        flows = [stack.enter_context(Following(layer)) for layer in decoder.layers] if parts > 1 else []
        for watcher, layer in zip(watchers, decoder.layers, strict=True):
            stack.enter_context(watcher.watch(linears(layer), expert_families(layer)))
        seen = [layer for index, layer in enumerate(decoder.layers) if observer.sees(index)]
        for handle in give_cache(seen, observer):
            stack.callback(handle.remove)
        model(input_ids=torch.arange(_PROBE, device=model.device)[None], use_cache=False)
    for watcher in watchers:
        watcher.inputs, watcher.expert_inputs = {}, {}  # tokens are not needed
    divided = Divided.of(parts, recipe.shape("weight"))
    found = [flow.row_parallel(divided, decoder.layer_name(index)) for index, flow in enumerate(flows)]
    return watchers, found or [frozenset[str]() for _ in watchers]


def _cache_codes(sizes: tuple[int, int] | None, recipe: Recipe) -> CacheCodes | None:
    """Codes of the keys and values of a layer with these head sizes; None for a layer that keeps none in a cache."""
    if recipe.shape("kv") is None or sizes is None:
        return None
    for size in sizes:
        check_head_size(size)
    keys, values = _gaussian_code(recipe, "kv", sizes[0]), _gaussian_code(recipe, "value", sizes[1])
    assert keys is not None and values is not None
    return CacheCodes(keys, values)


@lru_cache(maxsize=64)
def _gaussian_code(recipe: Recipe, part: str, entries: int) -> VectorCode | None:
    """The code of "act", "kv" or "value", fitted to Gaussian vectors with `entries` entries; None where that part stays
    in 16 bits."""
    shape = recipe.shape(part)
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(recipe.seed)
    vectors = torch.randn(1, max(1, _SAMPLE // entries), entries, generator=generator)
    return fit_heads(vectors, shape, recipe.seed, centering=False)
