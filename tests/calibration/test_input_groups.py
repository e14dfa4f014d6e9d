import torch
from torch import nn

from nestquant_cli.calibration.current_window import in_window
from nestquant_cli.calibration.input_groups import InputGroups
from nestquant_cli.models.structure import linears
from tests.families import gaussian


class Layer(nn.Module):
    """Two matrices on one input, one on a copy of it, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.copy, self.idle, self.second = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.copy(x.clone()) + self.second(x)


def test_linears_are_grouped_by_the_tensor_they_are_given() -> None:
    layer, groups = Layer(), InputGroups()
    x, y = gaussian(3, 8), gaussian(3, 8, seed=1)
    with groups.watch(linears(layer)):
        layer(x)
        with in_window(1):
            layer(y)
    assert groups.members == {"first": ["first", "second"], "copy": ["copy"]}
    assert groups.inputs["first"][0] is x and groups.inputs["first"][1] is y
    layer(x)
    assert not any(module._forward_pre_hooks for module in layer.children())
