"""The diagonal of the Fisher information at the outputs of Linears: mean squares of gradients on drawn tokens."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.progress import track
from ..models.structure import linears, open_decoder


@dataclass(frozen=True)
class Fisher:
    """What errors of a Linear's outputs cost, g being the gradient of log p of a token drawn from p.

    Attributes:
        outputs: E[g²] a token, (out,) float32.
        noisy: E[g² |z|²] a token, (out,) float32, z the rounding noise of the Linear's input: the noise of a token
            counts by what depends on that token. Zero where no noise is asked for.
    """

    outputs: Tensor
    noisy: Tensor


class _Sums:
    """The sums of one Linear over tokens."""

    def __init__(self, rows: int) -> None:
        self.squares, self.noisy = torch.zeros(rows), torch.zeros(rows)

    def add(self, gradient: Tensor, noise: Tensor | None) -> None:
        """Adds the gradients (…, out) of tokens whose inputs have noise of energy (tokens,)."""
        squares = gradient.reshape(-1, gradient.shape[-1]).float().square()
        self.squares += squares.sum(0).cpu()
        if noise is not None:
            self.noisy += (noise @ squares).cpu()


def fisher(
    model: PreTrainedModel, windows: Tensor, seed: int, noise: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> dict[str, Fisher]:
    """The Fisher information of every Linear in the decoder layers, by its full name.

    Args:
        model: the model, whole in memory; it is run forward and backward once for each window.
        windows: (windows, tokens) int64 token ids.
        seed: seed of the drawn tokens.
        noise: functions from the inputs (…, features) of a Linear to the energy of their rounding noise (tokens,), by
            the Linear's full name; None where no inputs are rounded.
    """
    sums: dict[str, _Sums] = {}

    def taking(name: str, inputs: Tensor, outputs: int) -> Callable[[Tensor], None]:
        total = sums.setdefault(name, _Sums(outputs))
        energy = noise[name](inputs) if noise and name in noise else None
        return lambda gradient: total.add(gradient, energy)

    generator = torch.Generator().manual_seed(seed)
    with watched(model, taking) as modules:
        for ids in track(windows, "measuring gradients", total=len(windows)):
            run_backward(model, ids, generator)
    tokens = windows.numel()
    totals = {name: sums.get(name, _Sums(linear.out_features)) for name, linear in modules.items()}
    return {name: Fisher(total.squares / tokens, total.noisy / tokens) for name, total in totals.items()}


def run_backward(model: PreTrainedModel, ids: Tensor, generator: torch.Generator) -> None:
    """Runs the model on one window (tokens,), draws a token at each place, and runs its log p backward."""
    logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0].float()
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()


@contextmanager
def watched(
    model: PreTrainedModel, taking: Callable[[str, Tensor, int], Callable[[Tensor], None]]
) -> Iterator[dict[str, nn.Linear]]:
    """Within it, the gradients at the outputs of all Linears of the decoder layers are taken from backward passes.

    Args:
        model: the model; its parameters need no gradients any more.
        taking: function from the full name of a Linear, its input (…, features) and the number of its outputs to one
            that takes the gradient (…, out).

    Yields:
        the Linears by full name.
    """
    model.requires_grad_(False)
    decoder = open_decoder(model)
    modules = {
        f"{decoder.layer_name(index)}.{name}": linear
        for index, layer in enumerate(decoder.layers)
        for name, linear in linears(layer).items()
    }

    def embedded(_: nn.Module, __: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    def watch(name: str) -> Any:
        def see(linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(taking(name, inputs[0], linear.out_features))

        return see

    handles = [model.get_input_embeddings().register_forward_hook(embedded)]
    handles += [linear.register_forward_hook(watch(name)) for name, linear in modules.items()]
    try:
        yield modules
    finally:
        for handle in handles:
            handle.remove()
