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
    model.requires_grad_(False)
    decoder = open_decoder(model)
    modules = {
        f"{decoder.layer_name(index)}.{name}": linear
        for index, layer in enumerate(decoder.layers)
        for name, linear in linears(layer).items()
    }
    sums = {name: _Sums(linear.out_features) for name, linear in modules.items()}
    generator = torch.Generator().manual_seed(seed)
    with _watched(model, modules, sums, noise or {}):
        for ids in track(windows, "measuring gradients", total=len(windows)):
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
    tokens = windows.numel()
    return {name: Fisher(total.squares / tokens, total.noisy / tokens) for name, total in sums.items()}


@contextmanager
def _watched(
    model: PreTrainedModel,
    modules: dict[str, nn.Linear],
    sums: dict[str, _Sums],
    noise: Mapping[str, Callable[[Tensor], Tensor]],
) -> Iterator[None]:
    """Within it, backward passes add the gradients of the modules' outputs to `sums`."""

    def embedded(_: nn.Module, __: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    def watch(name: str) -> Any:
        def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            energy = noise[name](inputs[0].detach()) if name in noise else None
            output.register_hook(lambda gradient: sums[name].add(gradient, energy))

        return see

    handles = [model.get_input_embeddings().register_forward_hook(embedded)]
    handles += [linear.register_forward_hook(watch(name)) for name, linear in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
