from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestquant_cli.calibration.data_flow import HIDDEN, DataFlow


class Layer(nn.Module):
    """A layer whose forward is given."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.matrix, self.norm = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8))
        self.formula = forward

    def forward(self, hidden_states: Tensor) -> Any:
        return self.formula(self, hidden_states)


def followed(forward: Any, **device: Any) -> DataFlow:
    layer = Layer(forward).to(**device)
    flow = DataFlow({"a": layer.a, "b": layer.b})
    hooks = list(flow.watch(layer))
    with torch.inference_mode():
        layer(hidden_states=torch.randn(2, 3, 8, **device))
    for hook in hooks:
        hook.remove()
    return flow


def test_a_linear_hides_what_is_in_front_of_it() -> None:
    flow = followed(lambda self, x: (x + self.b(F.silu(self.a(x * self.norm))), None))
    assert flow.inputs == {"a": {HIDDEN}, "b": {"a"}}
    assert flow.output == {HIDDEN, "b"}


def test_nothing_needs_to_be_computed() -> None:
    assert followed(lambda self, x: self.b(self.a(x)), device="meta").inputs == {"a": {HIDDEN}, "b": {"a"}}


def test_a_product_with_another_matrix_hides_it_too() -> None:
    gated = followed(lambda self, x: self.b(self.a(x) * torch.sigmoid(x @ self.matrix.float().t().half().float())))
    assert gated.inputs["b"] == {"a"}


def test_a_matrix_that_is_not_multiplied_hides_nothing() -> None:
    assert followed(lambda self, x: self.b(self.a(x) + (x * self.matrix[0]) @ x.mT @ x)).inputs["b"] == {HIDDEN, "a"}


def test_what_is_written_in_place_counts_and_shapes_do_not() -> None:
    def forward(self: Layer, x: Tensor) -> Tensor:
        out, rows = x.new_zeros(x.shape), x.any(-1).nonzero()[:, 1]
        out[:, rows] = self.a(x[:, rows])
        y = self.b(out)
        x += y
        return x

    flow = followed(forward)
    assert flow.inputs == {"a": {HIDDEN}, "b": {"a"}} and flow.output == {HIDDEN, "b"}


def test_the_mode_ends_with_the_layer_also_after_an_error() -> None:
    def failing(self: Layer, x: Tensor) -> Tensor:
        raise ValueError

    flow = DataFlow({})
    layer = Layer(failing)
    list(flow.watch(layer))
    try:
        layer(torch.zeros(1, 8))
    except ValueError:
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
