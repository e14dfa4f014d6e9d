"""The forward of packed experts: tokens sorted by expert, coded once for all experts, one product for each with tokens.

It is registered with transformers' experts interface under the name NAME, and a packed model's configuration chooses
it. Classes of experts that do not use the interface are computed by their own forward (`models.experts`). As with
transformers' own implementations, what the experts of a token give is added up in float32.
"""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from ..codecs.vectors import Rounded
from ..kernels import for_device
from ..models.experts import ExpertMatrices
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
    groups = group(top_k_index, len(first))
    if not groups.experts:
        return torch.zeros_like(hidden_states)
    chosen = top_k_index.reshape(-1)[groups.order] if self.has_bias else None
    inner = products(first, hidden_states, groups, groups.order // top_k_index.shape[-1])
    if chosen is not None:
        inner = inner + (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias)[chosen]
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    out = products(self.down_proj, inner, groups)
    if chosen is not None:
        out = out + self.down_proj_bias[chosen]
    if self.has_post_expert_norm:
        out = self.post_expert_norm(out)
    return _summed(out * top_k_weights.reshape(-1)[groups.order, None], groups, hidden_states, top_k_index)


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


def products(matrices: ExpertMatrices, x: Tensor, groups: Groups, taken: Tensor | None = None) -> Tensor:
    """Each pair's token times the matrix of its expert: (pairs, out), in x's dtype.

    Args:
        matrices: the experts' matrices.
        x: (tokens, in).
        groups: the pairs.
        taken: (pairs,) the token of each pair; None where x has one for each pair, in their order.
    """
    linears: list[Any] = [matrices.at(expert) for expert in groups.experts]
    if _few(linears, x, groups):
        kernels, source = for_device(x.device), linears[0].source
        taken = torch.arange(len(x)) if taken is None else taken
        v, scales = ([linear.stored(name) for linear in linears] for name in ("v", "row_scale"))
        return kernels.experts_product(source.floats(x), taken, groups.ends, v, scales, x.dtype)
    packed = next((module for module in matrices.modules() if isinstance(module, QuantizedLinear)), None)
    coded: Rounded | None = None if packed is None else packed.source.code_tokens(x)
    results = []
    for linear, (_, part) in zip(linears, groups.parts(), strict=True):
        rows = part if taken is None else taken[part]
        tokens = x[rows]
        if packed is not None and coded is not None:
            packed.source.hand_over(tokens, coded.rows(rows))
        results.append(linear(tokens))
    return torch.cat(results)


def _few(linears: list[Any], x: Tensor, groups: Groups) -> bool:
    """Whether a kernel multiplies the int8 rows of all these experts in one call, faster than one after another."""
    most = for_device(x.device).limits.joined_tokens
    if groups.ends[-1] > most * len(linears) or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return all(
        isinstance(linear, QuantizedLinear)
        and linear.resident == "int8"
        and linear.form().integers
        and linear.source is linears[0].source
        and linear._parameters["bias"] is None
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        for linear in linears
    )


def _summed(weighted: Tensor, groups: Groups, like: Tensor, choice: Tensor) -> Tensor:
    """What the experts of each token gave, (pairs, hidden size), added up: (tokens, hidden size)."""
    if len(groups.order) == choice.numel() and len(choice) == 1:
        return weighted.sum(0, keepdim=True, dtype=torch.float32).to(like.dtype)
    placed = weighted.new_zeros(choice.numel(), weighted.shape[1]).index_copy(0, groups.order, weighted)
    return placed.view(*choice.shape, -1).sum(1, dtype=torch.float32).to(like.dtype)
