"""The residual stream of a decoder layer, and which Linears' products are added to it as they are.

Names play no part in it. With the products of all later Linears held at zero, a product δ of such a Linear changes the
layer's output by δ. Without it the output is the layer's hidden states with the earlier such products: the residual
stream in front of this Linear. A norm or a multiplier behind a matrix, or several streams, do not pass this test.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.structure import linears
from .current_window import current_window
from .recorder import main_of

# Roundings of a sum to the layer's dtype that a difference of two outputs may be off, in units of eps.
_ROUNDINGS = 2


class ResidualStream:
    """Follows the residual stream through the calls of a decoder layer, for each window by itself.

    Args:
        layer: the layer.
        adders: names of the Linears whose products are added to the stream, in the order of their calls.
    """

    def __init__(self, layer: nn.Module, adders: tuple[str, ...]) -> None:
        self.adders = adders
        self._layer, self._modules = layer, linears(layer)
        self._now: dict[int, Tensor] = {}
        self._fronts: dict[str, dict[int, Tensor]] = {name: {} for name in adders}

    @contextmanager
    def watch(self, *names: str) -> Iterator[None]:
        """Within it the stream is followed, and kept as it is in front of each of these `adders`."""
        handles = [self._layer.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name in self.adders:
            if name in names:
                handles.append(self._modules[name].register_forward_pre_hook(partial(self._keep, name)))
            handles.append(self._modules[name].register_forward_hook(self._add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def now(self, window: int) -> Tensor:
        """The stream of a window of this process behind the adders that were called so far."""
        return self._now[window]

    def take(self, name: str) -> dict[int, Tensor]:
        """The stream in front of an adder by number of the window in this process; all that is kept is forgotten."""
        taken, self._fronts[name] = self._fronts[name], {}
        self._now.clear()
        return taken

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._now[current_window()] = args[0] if args else kwargs["hidden_states"]

    def _keep(self, name: str, *_: Any) -> None:
        self._fronts[name][current_window()] = self._now[current_window()]

    def _add(self, _: nn.Module, args: Any, product: Tensor) -> None:
        now = self._now[current_window()]
        self._now[current_window()] = now + product.reshape(now.shape)  # some layers flatten an MLP's windows


@torch.inference_mode()
def residual_adders(layer: nn.Module, run: Callable[[], None]) -> tuple[str, ...]:
    """Names of the Linears whose products are added to the residual stream as they are, in the order of their calls.

    Args:
        layer: a decoder layer.
        run: runs the layer on some text, on this thread, as window 0; twice for each Linear that could be one.
    """
    modules, shapes, order = linears(layer), dict[str, list[tuple[int, int]]](), list[str]()
    with ExitStack() as hooks:
        for name, linear in modules.items():
            see = partial(_see, shapes.setdefault(name, []), order, name)
            hooks.callback(linear.register_forward_hook(see).remove)
        output = _output(layer, ResidualStream(layer, ()), run)
    adders: tuple[str, ...] = ()
    for number, name in enumerate(order):
        if output is not None and shapes[name] == [(output.shape[-1], output.numel())]:
            later = [module for each, module in modules.items() if each not in order[: number + 1]]
            adders += (name,) if _is_added(layer, modules[name], later, adders, run) else ()
    return adders


def _is_added(
    layer: nn.Module, linear: nn.Linear, later: list[nn.Linear], adders: tuple[str, ...], run: Callable[[], None]
) -> bool:
    """Whether the layer puts out the stream behind `adders` where `linear` and `later` make zeros, and that with δ
    where `linear` makes δ."""
    stream = ResidualStream(layer, adders)
    with _held([linear, *later], None):
        base = _output(layer, stream, run)
    before = stream.now(0)
    if base is None or before.shape != base.shape:
        return False
    size = base.float().square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(base.dtype).eps)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    delta = (noise * size).to(base.dtype)
    with _held(later, None), _held([linear], delta):
        moved = _output(layer, stream, run)
    if moved is None:
        return False
    return _near(base.double(), before, base, before) and _near(moved.double() - base, delta, base, delta)


def _near(found: Tensor, expected: Tensor, *parts: Tensor) -> bool:
    """Whether tensors (…, width) are equal but for the roundings of a sum of these parts; not where one is NaN.

    The largest entry of a token counts for all of them: a layer may add up parts that cancel in some of them.
    """
    size = torch.stack([part.double().abs() for part in parts]).sum(0).amax(-1, keepdim=True)
    return bool(((found - expected).abs() <= _ROUNDINGS * torch.finfo(parts[0].dtype).eps * size).all())


def _see(shapes: list[tuple[int, int]], order: list[str], name: str, _: nn.Module, args: Any, product: Tensor) -> None:
    shapes.append((product.shape[-1], product.numel()))
    if name not in order:
        order.append(name)


def _output(layer: nn.Module, stream: ResidualStream, run: Callable[[], None]) -> Tensor | None:
    """The hidden states that the layer returns; None where it is not called, or they are no floating point tensor."""
    found: list[Any] = []
    handle = layer.register_forward_hook(lambda _, args, output: found.append(main_of(output)))
    with stream.watch():
        run()
    handle.remove()
    return found[0] if len(found) == 1 and isinstance(found[0], Tensor) and found[0].is_floating_point() else None


@contextmanager
def _held(modules: list[nn.Linear], product: Tensor | None) -> Iterator[None]:
    """Within it Linears compute nothing and make `product`, or zeros where that is None."""

    def make(linear: nn.Linear, x: Tensor) -> Tensor:
        shape = *x.shape[:-1], linear.out_features
        return x.new_zeros(shape) if product is None else product.reshape(shape)

    for linear in modules:
        linear.forward = partial(make, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in modules:
            del linear.forward
