"""The forward of packed experts: tokens sorted by expert, coded once for all experts, one product for each with tokens.

`routed_sum` computes it for whoever has the router's choice. For transformers it is registered with its experts
interface under the name NAME, and a packed model's configuration chooses it. Classes of experts that do not use the
interface are computed by their own forward (`models.experts`). As with transformers' own implementations, what the
experts of a token give is added up in float32.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from ..kernels import for_device
from ..kernels.device_kernels import of_family
from ..models.experts import ExpertMatrices
from .coded_tokens import coded_product
from .inputs import InputQuantizer
from .linear import QuantizedLinear

NAME = "nestquant"


class Groups(NamedTuple):
    """Pairs of a token and an expert, sorted by expert.

    Attributes:
        order: (pairs,) int64, places of the pairs in the router's choice.
        experts: the experts with tokens, ascending.
        ends: for each of them the number of its last pair, plus one.
    """

    order: Tensor
    experts: list[int]
    ends: list[int]

    def parts(self) -> list[tuple[int, slice]]:
        """Each expert with the range of its pairs."""
        starts = [0, *self.ends]
        return [(expert, slice(*ends)) for expert, *ends in zip(self.experts, starts, self.ends, strict=False)]


class Steps(NamedTuple):
    """What is done to the products of experts, besides summing them up.

    Attributes:
        activated: first products (pairs, …) to the inputs of the last ones; its second argument is the pairs' expert, a
            number, or where `of_expert`, (pairs,) numbers.
        finished: last products (pairs, hidden size) to outputs, with the same second argument.
        of_expert: whether that depends on the expert. Where it does not, the argument may be None.
    """

    activated: Callable[[Tensor, Tensor | int | None], Tensor]
    finished: Callable[[Tensor, Tensor | int | None], Tensor]
    of_expert: bool


def use_grouped_experts(model: nn.Module) -> None:
    """Registers the forward, and chooses it for the packed experts of a model whose class uses the interface."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    for module in model.modules():
        if hasattr(module, "_apply_gate") and any(isinstance(child, ExpertMatrices) for child in module.children()):
            config: Any = module.config
            config._experts_implementation = NAME


@torch.compiler.disable  # which experts have tokens is known when it runs
def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The output of an experts module of transformers, in the dtype of the hidden states.

    Args:
        self: the module; where its experts are no Linears, transformers computes it.
        hidden_states: (tokens, hidden size).
        top_k_index: (tokens, k) experts; those beyond the last one are on other devices and give nothing.
        top_k_weights: (tokens, k) what their outputs are multiplied with.
    """
    first = self.gate_up_proj if self.has_gate else self.up_proj
    if not isinstance(first, ExpertMatrices):
        y: Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return y
    steps = Steps(partial(_activated, self), partial(_finished, self), self.has_bias)
    return routed_sum(first, self.down_proj, steps, hidden_states, top_k_index, top_k_weights)


def routed_sum(
    up: ExpertMatrices, down: ExpertMatrices, steps: Steps, x: Tensor, choice: Tensor, weights: Tensor
) -> Tensor:
    """What packed experts give for tokens, only those that were chosen being computed: (tokens, hidden size) like x.

    Args:
        up: the first matrix of each expert, gate and up in one where it has both.
        down: the last one.
        steps: what is between them, and behind.
        x: (tokens, hidden size).
        choice: (tokens, k) experts; those beyond the last one give nothing.
        weights: (tokens, k) what the outputs of those experts are multiplied with.
    """
    groups = group(choice, len(up))
    if not groups.experts:
        return torch.zeros_like(x)
    taken = groups.order // choice.shape[-1]
    chosen = [[matrices.at(expert) for expert in groups.experts] for matrices in (up, down)]
    if _in_one_call(chosen, x, groups):
        parts = [_together(steps, x, taken, groups, *chosen)]
    else:
        parts = list(_one_by_one(steps, x, taken, groups, *chosen))
    if torch.is_grad_enabled() and (parts[0].requires_grad or weights.requires_grad):
        kernels = of_family("reference")  # which has a gradient
    else:
        kernels = for_device(x.device)
    return kernels.experts_sum(parts, groups.order, weights).to(x.dtype)


def group(choice: Tensor, experts: int) -> Groups:
    """Sorts the pairs of tokens and experts by expert.

    Args:
        choice: (tokens, k) experts; those from `experts` on are left out.
        experts: how many there are.
    """
    flat = choice.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    found = [(expert, count) for expert, count in enumerate(counts) if count]
    ends = list(accumulate(count for _, count in found))
    return Groups(order[: ends[-1]] if ends else order[:0], [expert for expert, _ in found], ends)


def _in_one_call(chosen: list[list[Any]], x: Tensor, groups: Groups) -> bool:
    """Whether a kernel multiplies the int8 rows of all these experts in one call, faster than one after another."""
    limits = for_device(x.device).limits
    most, sources = limits.joined_tokens, [_source(linears) for linears in chosen]
    if x.dtype == torch.bfloat16 and all(source is not None and source.code is None for source in sources):
        most = max(most, limits.int16_pairs)
    if groups.ends[-1] > most * len(groups.experts) or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return all(
        _plain(linear, source) and linear.resident == "int8" and linear.form().integers
        for linears, source in zip(chosen, sources, strict=True)
        for linear in linears
    )


def _plain(linear: Any, source: InputQuantizer | None) -> bool:
    """Whether a Linear is packed, has this input, and does nothing but multiply."""
    return (
        isinstance(linear, QuantizedLinear)
        and linear.source is source
        and linear._parameters["bias"] is None
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _together(steps: Steps, x: Tensor, taken: Tensor, groups: Groups, up: list[Any], down: list[Any]) -> Tensor:
    """The output of each pair (pairs, hidden size), by two kernel calls for all experts."""
    kernels = for_device(x.device)

    def product(linears: list[Any], x: Tensor, taken: Tensor) -> Tensor:
        v, scales = ([linear.stored(name) for linear in linears] for name in ("v", "row_scale"))
        return kernels.experts_product(linears[0].source.floats(x), taken, groups.ends, v, scales, x.dtype)

    experts = None
    if steps.of_expert:
        counts = [part.stop - part.start for _, part in groups.parts()]
        experts = torch.tensor(groups.experts).repeat_interleave(torch.tensor(counts))
    inner = steps.activated(product(up, x, taken), experts)
    return steps.finished(product(down, inner, torch.arange(len(inner))), experts)


def _one_by_one(
    steps: Steps, x: Tensor, taken: Tensor, groups: Groups, up: list[Any], down: list[Any]
) -> Iterator[Tensor]:
    """The outputs of each expert (its pairs, hidden size). Tokens are coded once for all of them."""
    graded = torch.is_grad_enabled() and x.requires_grad
    sources = [None if graded else _source(linears) for linears in (up, down)]
    coded = None if sources[0] is None else sources[0].code_tokens(x)
    for (expert, part), first, last in zip(groups.parts(), up, down, strict=True):
        rows = taken[part]
        if coded is not None and sources[0] is not None and _plain(first, sources[0]):
            inner = coded_product(first, coded.rows(rows), x)
        else:
            inner = first(x[rows])
        inner = steps.activated(inner, expert)
        if sources[1] is not None and not inner.requires_grad and _plain(last, sources[1]):
            yield steps.finished(coded_product(last, sources[1].code_tokens(inner), inner), expert)
        else:
            yield steps.finished(last(inner), expert)


def _source(linears: list[Any]) -> InputQuantizer | None:
    """The input quantizer of the first packed one of some Linears."""
    return next((linear.source for linear in linears if isinstance(linear, QuantizedLinear)), None)


def _activated(self: Any, up: Tensor, experts: Tensor | int | None) -> Tensor:
    """What an experts module makes of its first products, with its bias of these experts if it has one."""
    if self.has_bias:
        up = up + (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias)[experts]
    inner: Tensor = self._apply_gate(up) if self.has_gate else self.act_fn(up)
    return inner


def _finished(self: Any, down: Tensor, experts: Tensor | int | None) -> Tensor:
    """What an experts module makes of its last products."""
    if self.has_bias:
        down = down + self.down_proj_bias[experts]
    normed = getattr(self, "has_post_expert_norm", False)  # older versions of transformers have no experts with a norm
    out: Tensor = self.post_expert_norm(down) if normed else down
    return out
