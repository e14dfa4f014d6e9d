"""The packed cache in vLLM 0.32, on the CPU.

Each attention layer is asked for its quantization method while it is made. The method below waits until all layers are
there, and then gives them a backend of its own: `AttentionBackend.customize_spec` tells the engine how large a cell
of a page is, and the implementation writes and reads it. Nothing is registered, so other engines and layers of the
same process keep what they have.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.models.utils import extract_layer_index
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl
from vllm.v1.kv_cache_interface import AttentionSpec

from ....modules.cache_codes import CacheCodes
from . import UNPACKED
from .batch import Batch, Slots, batch_of
from .obstacles import codes_of_rank, obstacle
from .paged import PagedLayer

logger = init_logger("vllm.nestquant")


class PackedCacheMethod(BaseKVCacheMethod):
    """Packs the cache of one attention layer, if those of all layers of its engine can be packed.

    Args:
        config: the QuantizationConfig that made it.
        per_layer: codes of keys and values by layer index.
        seed: seed of the rotation signs; None does not rotate.
    """

    def __init__(self, config: Any, per_layer: list[CacheCodes | None], seed: int | None) -> None:
        super().__init__(config)
        self.per_layer, self.seed = per_layer, seed
        self._vllm: VllmConfig

    def create_weights(self, layer: Any) -> None:
        """A packed cache has no parameters: its codes are in config.json."""
        self._vllm = get_current_vllm_config()

    def process_weights_after_loading(self, layer: Any) -> None:
        """Gives all layers of the model their packed cache, as soon as the first one is asked."""
        if isinstance(layer.impl, PackedAttention):
            return
        context: dict[str, Any] = self._vllm.compilation_config.static_forward_context
        layers = {name: each for name, each in context.items() if isinstance(each, AttentionLayerBase)}
        why = _obstacle_of_engine(self._vllm)
        for name, each in layers.items():
            found = _obstacle_of_layer(each, self._codes(name))
            why = why or (None if found is None else f"layer {name} cannot have a packed cache, as {found}")
        if why is not None:
            logger.warning_once(UNPACKED, why)
            return
        with set_default_torch_dtype(torch.float32):  # while a model is loaded, it is that of the model
            packed = {name: self._packed(name, each) for name, each in layers.items()}
            packed[layer.layer_name].warm_up(layer.num_kv_heads, layer.dtype)
        cell = max(each.cell for each in packed.values())
        for name, each in layers.items():
            each.impl, each.attn_backend = PackedAttention(each.impl, packed[name]), packed_backend(cell)
        plain = (layer.head_size + layer.head_size_v) * layer.kv_cache_torch_dtype.itemsize
        logger.info("nestquant: keys and values take %d bytes for each head and token, not %d", cell, plain)

    def _codes(self, name: str) -> CacheCodes | None:
        try:
            index = extract_layer_index(name)
        except AssertionError:  # a name with several numbers or with none
            return None
        return self.per_layer[index] if index < len(self.per_layer) else None

    def _packed(self, name: str, layer: Any) -> PagedLayer:
        own, sizes = _own_codes(layer, self._codes(name)), (layer.head_size, layer.head_size_v)
        assert own is not None
        window = layer.impl.sliding_window
        queries = layer.num_heads // layer.num_kv_heads
        return PagedLayer(own, self.seed, sizes, layer.impl.scale, None if window < 0 else window, queries)


def _obstacle_of_engine(config: VllmConfig) -> str | None:
    """What the engine does that is not known to work with packed pages."""
    known = {
        "decode context parallelism splits the cache": config.parallel_config.decode_context_parallel_size > 1,
        "attention is to look ahead": bool(config.attention_config.use_non_causal),
        "a KV connector moves the cache": config.kv_transfer_config is not None,
        "drafts of tokens are speculated": config.speculative_config is not None,
    }
    return next((text for text, there in known.items() if there), None)


def _obstacle_of_layer(layer: Any, codes: CacheCodes | None) -> str | None:
    plain = type(layer).get_kv_cache_spec is Attention.get_kv_cache_spec if isinstance(layer, Attention) else False
    if not plain:
        return f"a {type(layer).__name__} keeps something else than keys and values of all tokens"
    if layer.attn_backend is not CPUAttentionBackend or type(layer.impl) is not CPUAttentionBackendImpl:
        return f"its attention is computed by {type(layer.impl).__name__}"
    if codes is not None and _own_codes(layer, codes) is None:
        return "the checkpoint has centers or factors of keys for other heads"
    return obstacle(layer, codes)


def _own_codes(layer: Any, codes: CacheCodes | None) -> CacheCodes | None:
    """The codes of the heads that this process has."""
    if codes is None:
        return None
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    return codes_of_rank(codes, layer.num_kv_heads, rank, ranks, (layer.head_size, layer.head_size_v))


class PackedBackend(CPUAttentionBackend):
    """Attention to packed pages; `packed_backend` makes the class for a size of cells.

    Attributes:
        packed_cell: bytes of one head and token in a page, the same in all layers of an engine.
    """

    packed_cell: ClassVar[int]

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """The pages of a layer as bytes, `packed_cell` of them for each head and token."""
        return replace(spec, dtype=torch.uint8, state_content_bytes=cls.packed_cell)

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Pages of any number of tokens, as they are copied together."""
        return [MultipleOf(1)]

    @staticmethod
    def get_impl_cls() -> type["PackedAttention"]:
        """The implementation, which is made from that of a layer."""
        return PackedAttention

    @staticmethod
    def get_builder_cls() -> type["BatchBuilder"]:
        """What sorts the requests of a step."""
        return BatchBuilder


@lru_cache(maxsize=64)
def packed_backend(cell: int) -> type[PackedBackend]:
    """The backend for cells of so many bytes. vLLM asks the class, so the size has to be an attribute of one."""
    return type(f"PackedBackend{cell}", (PackedBackend,), {"packed_cell": cell})


class BatchBuilder(AttentionMetadataBuilder[Batch]):
    """Sorts the requests of a step, once for all layers."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Batch:
        """The requests of a step."""
        common = common_attn_metadata
        if common.causal is not True:
            raise NotImplementedError("a packed cache is for tokens that see what came before them, and no others")
        starts = common.query_start_loc_cpu[: common.num_reqs + 1]
        lengths, table = common.seq_lens[: common.num_reqs], common.block_table_tensor[: common.num_reqs]
        return batch_of(starts, lengths, table, Slots(common.slot_mapping))


class PackedAttention(AttentionImpl[Batch]):
    """Attention of one layer to its packed pages.

    Args:
        plain: the implementation of the layer for a cache in 16 bits.
        packed: what writes and reads the pages.
    """

    def __init__(self, plain: CPUAttentionBackendImpl, packed: PagedLayer) -> None:
        self.num_heads, self.head_size, self.num_kv_heads = plain.num_heads, plain.head_size, plain.num_kv_heads
        self.scale, self.sliding_window, self.kv_cache_dtype = plain.scale, plain.sliding_window, plain.kv_cache_dtype
        self.packed = packed

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Packs new keys and values (tokens, key heads, head size) into their pages."""
        tokens = min(len(key), len(slot_mapping))  # either may be padded
        slots = _slots_of_step(layer.layer_name, slot_mapping)
        if tokens < len(slot_mapping):
            slots = Slots(slot_mapping[:tokens])
        self.packed.store(key[:tokens], value[:tokens], kv_cache, slots)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Batch | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Fills output (tokens, query heads, head size); the engine warms up without requests."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("a packed cache has no attention with quantized results")
        if attn_metadata is not None:
            tokens = attn_metadata.tokens
            self.packed.attend(query[:tokens], kv_cache, attn_metadata, output[:tokens])
        return output


def _slots_of_step(name: str, numbers: Tensor) -> Slots:
    """Where the tokens of a step go, from the batch that all layers share if the engine made it of the same tensor."""
    every = get_forward_context().attn_metadata
    batch = every.get(name) if isinstance(every, dict) else None
    if batch is not None and batch.slots is not None and batch.slots.numbers is numbers:
        shared: Slots = batch.slots
        return shared
    return Slots(numbers)
