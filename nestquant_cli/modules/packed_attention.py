"""Keys and values that a cache hands out undecoded.

`PackedStates` has the shape and dtype of decoded keys or values, and is one as soon as anything but its shape is asked
for: whatever a model does with it, it does with decoded values. The one exception is torch's own
scaled_dot_product_attention with few queries, which works on the packed bytes. No model and no attention
implementation has to know about it. The result differs from that to decoded states by rounding: 1e-6 in float32.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.vectors import VectorCode
from ..kernels import for_device, has
from .beside_attention import attend_beside
from .cache_codes import unpack_heads
from .unrounded import Beside

# What tensors that stand for others answer without the numbers.
OUTSIDE = frozenset(
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad", "is_cuda", "ndim", "layout")
) | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}


class PackedStates(Tensor):
    """Keys or values, (batch, heads, tokens, head size) of a floating dtype, that are bytes until they are needed.

    Attributes:
        packed: (batch, heads, tokens, bytes) uint8.
        code: their code.
        seed: seed of the rotation signs; None for no rotation.
        beside: unrounded states that are seen in place of some; None without any.
    """

    packed: Tensor
    code: VectorCode
    seed: int | None
    beside: Beside | None
    _decoded: Tensor | None

    @staticmethod
    def __new__(
        cls: type["PackedStates"],
        packed: Tensor,
        head_size: int,
        code: VectorCode,
        seed: int | None,
        dtype: torch.dtype,
    ) -> "PackedStates":
        """Wraps packed (batch, heads, tokens, bytes) uint8."""
        shape = (*packed.shape[:-1], head_size)
        made: PackedStates = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=packed.device)
        made.packed, made.code, made.seed, made.beside, made._decoded = packed, code, seed, None, None
        return made

    def decoded(self) -> Tensor:
        """What the bytes stand for; decoded once."""
        if self._decoded is None:
            with torch._C.DisableTorchFunctionSubclass():
                head_size, dtype = self.shape[-1], self.dtype
            rounded = unpack_heads(self.packed, head_size, self.code, self.seed, dtype)
            self._decoded = rounded if self.beside is None else self.beside.of_one(rounded)
        return self._decoded

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OUTSIDE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            result = _attention(*args, **kwargs)
            if result is not None:
                return result
        return func(*_decode_all(args), **_decode_all(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*_decode_all(args), **_decode_all(kwargs or {}))


def _decode_all(value: Any) -> Any:
    """Replaces the packed states in nested arguments by decoded ones."""
    if isinstance(value, PackedStates):
        return value.decoded()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_decode_all(item) for item in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: _decode_all(item) for key, item in value.items()}
    return value


def can_attend(code: VectorCode, head_size: int, seed: int | None, device: torch.device) -> bool:
    """Whether the device has a kernel that attends to packed vectors of a code."""
    return has(device, "attend") and code.attention_form(head_size, seed, device) is not None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **unknown: Any,
) -> Tensor | None:
    """Attention to packed keys and values, or None where anything is out of the ordinary."""
    if unknown or is_causal or dropout_p or type(query) is not Tensor or query.dim() != 4:
        return None
    if not isinstance(key, PackedStates) or not isinstance(value, PackedStates) or key.seed != value.seed:
        return None
    if torch.is_autocast_enabled(query.device.type) or (torch.is_grad_enabled() and query.requires_grad):
        return None
    kernels, of_keys, of_values = for_device(query.device), key.shape, value.shape
    if not _shapes_fit(query.shape, of_keys, of_values, enable_gqa, kernels.limits.queries):
        return None
    batch, heads, _, size = of_keys
    mask = _additive(attn_mask, heads, query.shape)
    if attn_mask is not None and (mask is None or (torch.is_grad_enabled() and mask.requires_grad)):
        return None
    keys = key.code.attention_form(size, key.seed, query.device)
    values = value.code.attention_form(of_values[3], key.seed, query.device)
    if keys is None or values is None or values.centers is not None or key.seed is None:
        return None  # the kernel adds no centers to values
    if values.of_queries is not None:
        return None  # nor does it divide values
    queries, factor, seed = query.reshape(batch, heads, -1, size), scale or 1 / math.sqrt(size), key.seed
    multiplied = keys.queries(queries)

    def attend(packed: Tensor, other: Tensor, mask: Tensor | None, lse: Tensor | None = None) -> Tensor:
        stored = (packed, keys.code), (other, values.code, of_values[3])
        return kernels.attend(multiplied, *stored, seed, mask, factor, keys.centers, lse)

    if key.beside is None or value.beside is None:
        out = attend(key.packed, value.packed, mask)
    else:
        states = (key.packed, value.packed), (key.beside, value.beside)
        out = attend_beside(attend, queries, *states, mask, factor)
    return out.to(query.dtype).view(*query.shape[:3], of_values[3])


def _shapes_fit(query: torch.Size, keys: torch.Size, values: torch.Size, enable_gqa: bool, most_queries: int) -> bool:
    """Whether these are few queries, the same number for each head of the keys."""
    batch, heads, tokens, size = keys
    if query[0] != batch or query[3] != size or values[:3] != keys[:3]:
        return False
    if query[1] != heads and not (enable_gqa and query[1] % heads == 0 and query[2] == 1):
        return False
    return 0 < query[1] * query[2] <= heads * most_queries and tokens > 0


def _additive(mask: Tensor | None, heads: int, query: torch.Size) -> Tensor | None:
    """A mask for the scores of `query`, as one to be added, with queries of a key head along the third axis."""
    if mask is None or mask.dim() != 4 or type(mask) is not Tensor:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    if query[1] == heads or mask.shape[1] == 1:
        return mask
    return mask.reshape(mask.shape[0], heads, query[1] // heads, mask.shape[3]) if mask.shape[1] == query[1] else None
