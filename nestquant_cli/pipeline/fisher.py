"""The diagonal of the Fisher information at the outputs of Linears: mean squares of gradients on drawn tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.progress import track
from ..models.structure import linears, open_decoder

Fisher = dict[str, Tensor]  # E[g²] a token of every output (out,), by full name of the Linear


def fisher(model: PreTrainedModel, windows: Tensor, seed: int) -> Fisher:
    """E[g²] a token of every Linear's output in the decoder layers, g the gradient of log p of a token drawn from p.

    Args:
        model: the model, whole in memory; it is run forward and backward once for each window.
        windows: (windows, tokens) int64 token ids.
        seed: seed of the drawn tokens.
    """
    model.requires_grad_(False)
    decoder = open_decoder(model)
    modules = {
        f"{decoder.layer_name(index)}.{name}": linear
        for index, layer in enumerate(decoder.layers)
        for name, linear in linears(layer).items()
    }
    sums = {name: torch.zeros(linear.out_features) for name, linear in modules.items()}
    generator = torch.Generator().manual_seed(seed)
    with _watched(model, modules, sums):
        for ids in track(windows, "measuring gradients", total=len(windows)):
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
    return {name: total / windows.numel() for name, total in sums.items()}


@contextmanager
def _watched(model: PreTrainedModel, modules: dict[str, nn.Linear], sums: Fisher) -> Iterator[None]:
    """Within it, backward passes add the squares of the gradients of the modules' outputs to `sums`."""

    def embedded(_: nn.Module, __: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    def watch(name: str) -> Any:
        def add(gradient: Tensor) -> None:
            sums[name] += gradient.reshape(-1, gradient.shape[-1]).float().square().sum(0).cpu()

        def see(_: nn.Module, __: Any, output: Tensor) -> None:
            output.register_hook(add)

        return see

    handles = [model.get_input_embeddings().register_forward_hook(embedded)]
    handles += [linear.register_forward_hook(watch(name)) for name, linear in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
