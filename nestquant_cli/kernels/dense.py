"""Dense products of floats, by torch's own kernels.

A CPU without instructions for bfloat16 multiplies it entry by entry in torch. There bfloat16 is multiplied as float32
and rounded once: 6 to 8 times as fast, and sums are kept in float32 either way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PANEL = 1 << 20  # entries of a matrix that are float32 at a time: they stay in the caches
# With fewer, making the matrix float32 costs more than it saves. At 8 tokens it takes 0.58 to 0.87 of torch's time, at
# 2,048 tokens 0.12 to 0.18 (AMD EPYC with AVX2 alone, 576 to 4,096 features).
FEWEST_TOKENS = 8


def _emulated() -> bool:
    """Whether torch has no fast bfloat16 products on this CPU."""
    try:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return True


EMULATED = _emulated()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias, as torch.nn.functional.linear: x (…, k), weight (rows, k), bias (rows,) to (…, rows)."""
    if EMULATED and _worth_it(x, weight):
        return in_float32(x, weight, bias)
    return F.linear(x, weight, bias)


def in_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same through float32, some rows of the weight at a time, rounded once to the weight's dtype."""
    x, step = x.float(), max(1, _PANEL // max(1, weight.shape[1]))
    panels = weight.split(step)
    biases = [None] * len(panels) if bias is None else bias.float().split(step)
    parts = [
        F.linear(x, *each).to(weight.dtype) for each in zip((rows.float() for rows in panels), biases, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    if not (x.dtype == weight.dtype == torch.bfloat16 and x.is_cpu and weight.is_cpu):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False  # every float32 panel would be kept for the way back
    return x.numel() >= FEWEST_TOKENS * x.shape[-1] > 0


def in_few_sizes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·weightᵀ + bias for any number of tokens: they are padded with zeros to one of eight numbers an octave.

    oneDNN compiles a kernel for each number of tokens, and keeps 1,024 of them: 0.2 to 2 MiB and 1 to 4 ms each (2,048
    and 768 features). A router sends another number to each expert of each window; over 2,000 numbers took 2.3 GiB.
    """
    tokens = len(x)
    step = 1 << max(0, tokens.bit_length() - 4)
    if step == 1 or -tokens % step == 0:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, -tokens % step)), weight, bias)[:tokens]


def _compiled_by_size(x: Tensor) -> bool:
    """Whether the product of tokens (tokens, k) is one for which oneDNN compiles kernels."""
    if not (x.is_cpu and x.dim() == 2 and x.dtype in (torch.bfloat16, torch.float16)):
        return False
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class DenseLinear(nn.Linear):
    """A Linear that multiplies so."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        return linear(input, self.weight, self.bias)


class ExpertLinear(DenseLinear):
    """The Linear of an expert, which gets another number of tokens in each call."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        if not EMULATED and _compiled_by_size(input):
            return in_few_sizes(input, self.weight, self.bias)
        return super().forward(input)


def use_float32_products(model: nn.Module) -> None:
    """Makes the Linears of a model multiply so, in place; does nothing where torch is fast by itself."""
    for module in model.modules() if EMULATED else ():
        if type(module) is nn.Linear:
            module.__class__ = DenseLinear
