"""What a text reaches in a model, from one forward on the meta device: no weight is needed, and nothing is computed.

The decoder of a model that was cut from an encoder–decoder has Linears for the encoder's states, which no text reaches.
They cannot be measured, so they stay in 16 bits. Head sizes of keys and values may differ from layer to layer, and a
configuration need not say them. A forward shows both.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .as_linears import routed_experts
from .language_model import runner
from .structure import Decoder, linears

TOKENS = 11  # of the forward; any number serves, and this one is hardly a number of experts


class HeadSizes(DynamicCache):
    """A cache that notes the head sizes of keys and values that layers give it.

    Attributes:
        sizes: head size of keys and of values by number of the layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.sizes: dict[int, tuple[int, int]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Notes the sizes of states (batch, heads, tokens, head size), and keeps the states."""
        self.sizes[layer_idx] = key_states.shape[-1], value_states.shape[-1]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@dataclass(frozen=True)
class Probe:
    """What one forward of a text shows.

    Attributes:
        uncalled: names in its layer of the Linears that no text reaches, by number of the layer.
        heads: head sizes of keys and of values by number of the layer, of layers that keep any; None where the model
            takes no cache of the usual kind.
        chosen: how many experts a router chooses for a token, by the number that it chooses from: those of a layer and,
            in some models, others that compute nothing.
    """

    uncalled: dict[int, tuple[str, ...]]
    heads: dict[int, tuple[int, int]] | None
    chosen: dict[int, int] = field(default_factory=dict)

    def share(self, experts: int) -> float:
        """Share of the tokens that one of a layer's experts is given on average; 1 where that does not show."""
        found = sorted(size for size in self.chosen if experts <= size <= 2 * experts)
        return min(1.0, self.chosen[found[0]] / found[0]) if found else 1.0


def probe(model: PreTrainedModel, decoder: Decoder) -> Probe | None:
    """Runs a text through a model on the meta device; None where its forward needs numbers, which are not there.

    Args:
        model: the model, with all its tensors on the meta device.
        decoder: its decoder layers.
    """
    called = {index: _experts(layer) for index, layer in enumerate(decoder.layers)}
    cache = HeadSizes(model.config.get_text_config(decoder=True))
    _, runs_text = runner(model.eval(), decoder.prefix)
    with ExitStack() as stack:
        chosen = stack.enter_context(_Choices()).chosen
        for index, layer in enumerate(decoder.layers):
            for name, linear in linears(layer).items():
                stack.callback(linear.register_forward_pre_hook(partial(_note, called[index], name)).remove)
        cached = _runs(decoder, runs_text, past_key_values=cache, use_cache=True)
        if not cached and not _runs(decoder, runs_text, use_cache=False):
            return None
    left = {
        index: tuple(name for name in linears(layer) if name not in called[index])
        for index, layer in enumerate(decoder.layers)
    }
    return Probe({index: names for index, names in left.items() if names}, cache.sizes if cached else None, chosen)


@contextmanager
def without_numbers(decoder: Decoder) -> Iterator[Tensor]:
    """Within it models run on the meta device as far as they can, experts left out, on the token ids that it yields."""
    with torch.no_grad(), _Yes(), ExitStack() as stack:
        for layer in decoder.layers:
            stack.enter_context(_without_experts(layer))
        yield torch.zeros(1, TOKENS, dtype=torch.long, device="meta")


def _runs(decoder: Decoder, module: nn.Module, **settings: Any) -> bool:
    """Whether what runs the decoder takes a text."""
    with suppress(Exception), without_numbers(decoder) as ids:  # of any kind, where it needs what is not there
        module(input_ids=ids, **settings)
        return True
    return False


class _Yes(TorchDispatchMode):
    """Answers questions about the numbers of a tensor that has none, such as whether a mask is all ones, by 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        with self:  # operators that consist of others may ask in one of them
            parts = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if parts is NotImplemented else parts


class _Choices(TorchDispatchMode):
    """Notes from how many scores each operation chooses the largest, and how many of them."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.topk.default and args[0].dim():
            self.chosen[args[0].shape[-1]] = args[1]
        return func(*args, **(kwargs or {}))


def _note(called: set[str], name: str, *_: Any) -> None:
    called.add(name)


def _experts(layer: nn.Module) -> set[str]:
    """Names of the Linears of experts, which count as called: which of them a token reaches depends on numbers."""
    found = routed_experts(layer).items()
    return {f"{name}.{expert}" for name, matrices in found for expert, _ in matrices.named_children()}


@contextmanager
def _without_experts(layer: nn.Module) -> Iterator[None]:
    """Within it the experts of a layer hand back what they get."""
    modules = {layer.get_submodule(name.rpartition(".")[0]) for name in routed_experts(layer)}
    for module in modules:
        module.forward = _handing_back
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _handing_back(*args: Any, **kwargs: Any) -> Tensor:
    """The first tensor that it is given: the hidden states."""
    first: Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return first
