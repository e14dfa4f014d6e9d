"""Without numbers, a forward shows what a model computes between its layers just as calibration does with numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.between_layers import Operations, refuse_computed
from nestquant_cli.calibration.recorder import Recorder
from nestquant_cli.models.probe import without_numbers
from nestquant_cli.models.structure import Decoder


class Layer(nn.Module):
    def forward(self, hidden_states: Tensor, extra: Any) -> tuple[Tensor, Tensor]:
        return hidden_states.tanh(), hidden_states.sin()


class Toy(nn.Module):
    """Three layers; each is given what `between` makes of the hidden states in front of it and of what was returned."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.table, self.between = nn.Embedding(300, 8, device="meta"), between

    def forward(self, ids: Tensor) -> None:
        hidden = state = self.table(ids)
        for layer in self.layers:
            hidden, state = layer(hidden, self.between(hidden, state))


def examined(between: Any) -> None:
    toy = Toy(between)
    decoder = Decoder(toy, "", toy.layers, "layers")
    with without_numbers(decoder) as ids, Operations() as operations:
        recording = Recorder(decoder, toy).record(ids)
    refuse_computed(recording, operations, ["layers.0", "layers.1", "layers.2"])


COMPUTED: dict[str, Any] = {
    "hidden states": lambda hidden, state: hidden * 2,
    "in a list": lambda hidden, state: [state.mean(-1)],
    "by several steps": lambda hidden, state: torch.cat([state, torch.ones_like(state)], -1).view(-1),
    "in place": lambda hidden, state: torch.zeros_like(state).add_(state),
    "by a composite operator": lambda hidden, state: nn.functional.layer_norm(state, (8,)),
}
GIVEN: dict[str, Any] = {
    "nothing": lambda hidden, state: None,
    "returned": lambda hidden, state: state,
    "returned, in a mapping": lambda hidden, state: {"state": state},
    "of its shape alone": lambda hidden, state: torch.zeros_like(hidden) + hidden.shape[1],
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_what_is_computed_from_what_layers_returned_is_refused(kind: str) -> None:
    with pytest.raises(NestQuantError, match=r"^layers\.1 is given what the model computes between its layers"):
        examined(COMPUTED[kind])


@pytest.mark.parametrize("kind", GIVEN)
def test_what_depends_on_no_numbers_of_layers_is_not(kind: str) -> None:
    examined(GIVEN[kind])
