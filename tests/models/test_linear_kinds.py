from typing import Any

import torch
from torch import Tensor, nn

from nestquant_cli.models.as_linears import as_linears, own_tensors
from nestquant_cli.models.linear_kinds import groups_of, is_plain
from nestquant_cli.models.structure import linears
from tests.families import gaussian


class Grouped(nn.Linear):
    """Four groups of two rows."""

    def forward(self, x: Tensor) -> Tensor:
        matrices = self.weight.view(4, -1, self.in_features).transpose(1, 2)
        return torch.bmm(x.reshape(-1, 4, self.in_features).transpose(0, 1), matrices).transpose(0, 1)


class Turned(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.turned, self.pair = Grouped(16, 8, bias=False), Turned(16, 4), Pair(16, 4)


def test_subclasses_are_told_by_what_they_compute() -> None:
    layer = Layer()
    assert is_plain(nn.Linear(4, 4)) and is_plain(layer.turned)
    assert not is_plain(layer.pair) and not is_plain(layer.grouped)
    assert [groups_of(module) for module in layer.children()] == [4, 0, 0]
    with torch.device("meta"):
        assert groups_of(Grouped(16, 8, bias=False)) == 4


def test_the_groups_of_a_linear_are_linears() -> None:
    layer, x = Layer(), gaussian(3, 4, 16)
    expected, weight = layer.grouped(x), layer.grouped.weight.detach().clone()
    as_linears(nn.ModuleList([layer]), 16)
    assert list(linears(layer)) == [f"grouped.weight.expert_{number}" for number in range(4)] + ["turned"]
    torch.testing.assert_close(layer.grouped(x), expected)
    seen: list[Tensor] = []
    linears(layer)["grouped.weight.expert_1"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer.grouped(x)
    assert torch.equal(seen[0], x[:, 1])
    assert own_tensors(layer)["grouped.weight"].shape == weight.shape
    assert torch.equal(torch.cat(list(layer.get_submodule("grouped.weight").pieces())), weight)  # type: ignore[operator]
