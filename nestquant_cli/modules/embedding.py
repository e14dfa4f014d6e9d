"""The embedding of a quantized model: coded rows, which are looked up and decoded one by one.

A row is decoded as that of a weight and rotated back: x = Rᵀ(s·v). What else the class of a model's embedding computes,
as a scale behind the lookup, stays: the new module is of a subclass, and only the lookup of nn.Embedding is replaced.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs.registry import decoded
from ..codecs.row_scale import row_scale_of
from ..codecs.weights import WeightCode
from .inputs import InputQuantizer
from .linear import QuantizedLinear
from .operators import lookup, register_layer

# Of the original's attributes: its tensors, and what accelerate puts on a module, which calls the module it was put on.
_NOT_KEPT = ("_parameters", "_buffers", "forward", "_hf_hook", "_old_forward")


class QuantizedEmbedding(nn.Embedding):
    """Replaces nn.Embedding. State: the tensors of the code, `words` and `row_scale`.

    Where the output head is tied to it, both modules have one and the same dictionary of buffers: the head keeps none
    of its own in a checkpoint, and whatever moves or exchanges a tensor of one does so for both.

    Attributes:
        source: rotation of the rows; a head that is tied shares it.
        code: code of the rows.
        dtype: dtype of what is looked up.
        head: (head,) if one is tied, as a tuple, so that it is no submodule; else ().
    """

    # Families initialize embeddings by the shape of their weight, which is empty here. One with buffers of its own, as
    # a scale is, has no flag: transformers computes those when it loads a model.
    _is_hf_initialized = True

    source: InputQuantizer
    code: WeightCode
    dtype: torch.dtype
    head: tuple[QuantizedLinear, ...]

    def forward(self, input: Tensor) -> Tensor:
        """Rows of token ids (...): (..., embedding_dim), in the module's dtype."""
        if torch.compiler.is_compiling():
            compiled: Tensor = lookup(input, self._number)
            return compiled
        return self.look_up(input)

    def look_up(self, ids: Tensor) -> Tensor:
        """The rows of ids (...), decoded: (..., embedding_dim)."""
        rows = coded_rows(self._buffers, self.code, self.source, ids.reshape(-1))
        return rows.to(self.dtype).reshape(*ids.shape, self.embedding_dim)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A cast of the module is one of what it looks up: `fn` shows to which dtype."""
        self.dtype = fn(torch.empty_like(self.weight)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.code}" + (", tied" if self.head else "")

    def __getattr__(self, name: str) -> Any:
        """Without a `weight`, that is an empty tensor: model code asks for its dtype and its device."""
        buffers = self.__dict__.get("_buffers", {})
        if name == "weight" and "row_scale" in buffers:
            stand_in = torch.empty(0, dtype=self.dtype, device=buffers["row_scale"].device)
            stand_in._is_hf_initialized = True  # type: ignore[attr-defined]
            return stand_in
        if name == "words" and "v" in buffers:
            return self.head[0].to_words()
        return super().__getattr__(name)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "v" in self._buffers:  # the form that the head has chosen
            destination[prefix + "words"] = self.head[0].to_words()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        unpacked = [head for head in self.head if head.resident == "int8"]
        for head in self.head:
            head.hold_packed()
            head.forget()
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for head in unpacked:
            head.hold_int8()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = register_layer(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles the module by the class that it replaces: its own has no name in a module to be found by."""
        return _blank, (self.replaced,), self.__dict__

    @property
    def replaced(self) -> type[nn.Embedding]:
        """The class of the embedding that it stands for."""
        kinds: Any = type(self).__mro__
        return next(kind for kind in kinds if not issubclass(kind, QuantizedEmbedding))


def coded_rows(stored: Mapping[str, Any], code: WeightCode, source: InputQuantizer, ids: Tensor) -> Tensor:
    """Some rows of a coded table, decoded and rotated back: (ids, columns) float32.

    Args:
        stored: its tensors by name, in either form of a weight in memory.
        code: code of its rows.
        source: their rotation.
        ids: (ids,) whole numbers of rows.
    """
    if "v" in stored:
        scale = row_scale_of(stored["row_scale"].index_select(0, ids))
        return source.unrotate(stored["v"].index_select(0, ids).float() * scale[:, None])
    taken = {name: stored[name].index_select(0, ids) for name in code.tensors(1, source.padded)}
    return source.unrotate(decoded(code, taken, source.padded))


def quantized_embedding(original: nn.Embedding, code: WeightCode, source: InputQuantizer) -> QuantizedEmbedding:
    """An embedding with coded rows, all zeros, that does with them what `original` does with its own.

    Args:
        original: the embedding of a model, on any device.
        code: code of the rows.
        source: rotation of the rows.
    """
    made: QuantizedEmbedding = _without_weight(original)
    made.source, made.code, made.head = source, code, ()
    for name, (shape, of) in code.tensors(original.num_embeddings, source.padded).items():
        made.register_buffer(name, torch.zeros(shape, dtype=of, device=original.weight.device))
    made._number = register_layer(made)
    return made


def looks_up(original: nn.Embedding) -> bool:
    """Whether an embedding's class takes its rows by nn.Embedding's own lookup, once, and gives a vector for each id.

    Found by trying it without numbers: a class that reads its weight itself cannot do so with coded rows.
    """
    made, seen, size = _without_weight(original), list[Tensor](), original.embedding_dim
    made.register_buffer("row_scale", torch.empty(0))  # what makes it have a weight without entries

    def look_up(ids: Tensor) -> Tensor:
        seen.append(ids)
        return torch.zeros(*ids.shape, size, dtype=made.dtype, device=original.weight.device)

    made.look_up = look_up
    with suppress(Exception), torch.no_grad():  # any error of code that wants rows
        ids = torch.zeros(1, 2, dtype=torch.int64, device=original.weight.device)
        return tuple(made(ids).shape) == (1, 2, size) and len(seen) == 1 and seen[0] is ids
    return False


def tie(embedding: QuantizedEmbedding, head: QuantizedLinear) -> None:
    """Makes a head multiply with the rows of an embedding, which alone saves and loads them."""
    head.__dict__["_buffers"] = embedding._buffers
    head.__dict__["_non_persistent_buffers_set"] = embedding._non_persistent_buffers_set
    head.tied, embedding.head = True, (head,)


def _without_weight(original: nn.Embedding) -> Any:
    """An embedding of the quantized class with all that `original` has, but its weight."""
    made = _blank(type(original))
    made.__dict__ |= {name: value for name, value in original.__dict__.items() if name not in _NOT_KEPT}
    parameters = {name: value for name, value in original._parameters.items() if name != "weight"}
    made.__dict__ |= {"_parameters": parameters, "_buffers": dict(original._buffers)}
    made._non_persistent_buffers_set = set(original._non_persistent_buffers_set)
    made.dtype = original.weight.dtype
    if original._buffers:
        made._is_hf_initialized = False
    return made


def _blank(kind: Any) -> Any:
    made = _subclass(kind)
    return made.__new__(made)


@cache
def _subclass(kind: Any) -> Any:
    """The class of embeddings that looks rows up as QuantizedEmbedding does, and all else as `kind`."""
    if kind is nn.Embedding:
        return QuantizedEmbedding
    same = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, QuantizedEmbedding), same)
