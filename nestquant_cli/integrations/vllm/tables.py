"""The method of vLLM's embeddings and heads whose rows are coded: looked up one by one, and multiplied as a Linear's.

Each process has the rows of its share of the vocabulary: vLLM's own loader cuts them out of words and scales as it cuts
weights. A head that is tied has nothing of its own; it multiplies with what the embedding has.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.utils import set_weight_attrs

from ...base.errors import NestQuantError
from ...codecs.registry import codec_of
from ...modules.embedding import coded_rows
from ...modules.inputs import padded_size
from ...modules.linear import QuantizedLinear
from ...modules.table_layout import TableLayout
from . import operators
from .layer import CodedLayer, LayerInput
from .linear import refuse_untaken
from .refusals import not_loaded
from .state import ModelState
from .weights import NOT_LOADED


def table_method(state: ModelState, layer: VocabParallelEmbedding, prefix: str) -> "CodedTableMethod | None":
    """The method of an embedding or a head; None where the checkpoint has it in 16 bits.

    Some classes of vLLM give their embedding no name. There it is the one of the layout with the same numbers of rows
    and columns, if no other has taken it.
    """
    head = isinstance(layer, ParallelLMHead)
    tables = state.layout.tables
    found = state.tables.of(prefix, {})
    if not found and not head:
        size = layer.org_vocab_size, layer.embedding_dim
        free = [name for name in state.tables.untaken() if name in tables and tables[name].embedding]
        found = [name for name in free if (tables[name].rows, tables[name].columns) == size]
    if not found:
        return None
    name = next(each for each in tables if found[0] in (each, tables[each].head))
    state.tables.take([found[0]], layer)
    return CodedTableMethod(state, name, tables[name])


class CodedTableMethod(QuantizeMethodBase):
    """Looks up and multiplies with the coded rows of a table.

    Args:
        state: what the layers of the model share.
        name: name of the table in the layout.
        table: what the layout says of it.
    """

    def __init__(self, state: ModelState, name: str, table: TableLayout) -> None:
        self._state, self._name, self._table = state, name, table

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Gives the layer parameters for the rows of this process; those that fill up its share stay zeros."""
        table = self._table
        if (layer.org_vocab_size, input_size_per_partition) != (table.rows, table.columns):
            size = f"{layer.org_vocab_size} × {input_size_per_partition}"
            raise NestQuantError(
                f"{self._name} has {table.rows} × {table.columns} entries, the layer of vLLM {size}",
                "the checkpoint was not loaded",
                "use it in transformers",
            )
        layer.coded_dtype, layer.coded_owner = params_dtype, ()
        rows = sum(output_partition_sizes)
        for leaf, (shape, dtype) in table.code.tensors(rows, padded_size(table.columns)).items():
            data = torch.full(shape, NOT_LOADED if leaf == "row_scale" else 0, dtype=dtype)
            parameter = nn.Parameter(data, requires_grad=False)
            set_weight_attrs(parameter, {"output_dim": 0, **extra_weight_attrs})
            layer.register_parameter(leaf, parameter)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Lets a head multiply with the rows of an embedding."""
        for leaf in self._leaves():
            delattr(layer, leaf)
        layer.coded_owner = (embed_tokens,)  # a tuple is no submodule
        return layer

    def process_weights_after_loading(self, layer: Any) -> None:
        """Makes of what was loaded what rows are looked up in."""
        refuse_untaken(self._state)
        if layer.coded_owner or hasattr(layer, "coded"):
            return  # tied, or done before
        stored = {leaf: getattr(layer, leaf).data for leaf in self._leaves()}
        if (stored["row_scale"] == NOT_LOADED).any():
            raise not_loaded(f"the tensors of {self._name}")
        table, code = self._table, self._table.code
        source = LayerInput(table.columns, self._state.layout.rotation_seed, None)
        rows, kind = len(stored["row_scale"]), codec_of(code).linear
        linear: QuantizedLinear = kind(table.columns, rows, False, source, code, layer.coded_dtype, "meta")
        for leaf, tensor in stored.items():
            delattr(layer, leaf)
            setattr(linear, leaf, tensor)
        if self._state.int8(stored["words"].device):
            linear.hold_int8()
        layer.coded = CodedTable(linear)
        layer.register_buffer("coded_number", operators.number_of(layer.coded), persistent=False)

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """The rows of ids (...) of this process: (..., columns) in the layer's dtype."""
        if torch.compiler.is_compiling():
            compiled: Tensor = operators.lookup(input_, layer.coded_number, self._table.columns, layer.coded_dtype)
            return compiled
        rows: Tensor = layer.coded.look_up(input_)
        return rows

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., columns) to the logits (..., rows of this process) in its dtype."""
        owner = layer.coded_owner[0] if layer.coded_owner else layer
        if torch.compiler.is_compiling():
            compiled: Tensor = operators.linear(x, bias, owner.coded_number, owner.coded.rows)
            return compiled
        product: Tensor = owner.coded.compute(x, bias)
        return product

    def _leaves(self) -> list[str]:
        return list(self._table.code.tensors(1, padded_size(self._table.columns)))


class CodedTable(CodedLayer):
    """Rows that are looked up and multiplied.

    Args:
        linear: the rows as a Linear.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__([linear])

    def look_up(self, ids: Tensor) -> Tensor:
        """The rows of ids (...): (..., columns) in the table's dtype."""
        (linear,) = self.linears
        rows = coded_rows(linear._buffers, linear.code, linear.source, ids.reshape(-1))
        return rows.to(linear.dtype).reshape(*ids.shape, linear.in_features)
