"""Toy layers that are given embeddings, what earlier layers returned, and a bag that they fill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.hidden_states import HiddenStates
from nestquant_cli.calibration.recorder import Recorder
from nestquant_cli.calibration.window_arguments import WindowArguments
from nestquant_cli.models.structure import Decoder
from tests.families import gaussian, random_ids

CPU = torch.device("cpu")
WINDOWS = random_ids(4, 6)


class Layer(nn.Module):
    def forward(
        self, hidden_states: Tensor, embedded: Tensor, bag: dict[str, Tensor], before: Any, scale: Tensor
    ) -> Any:
        state = hidden_states + embedded + (0 if before is None else before) + sum(bag.values()) * scale
        bag[f"mean {len(bag) % 2}"] = state.mean(1, keepdim=True)
        return state.tanh(), state.sin()


class Toy(nn.Module):
    """Three layers; the third is given what the first returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.table = gaussian(300, 8)
        self.scale = torch.tensor(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, returned, bag = self.table[ids], [None], dict[str, Tensor]()
        for index, layer in enumerate(self.layers):
            hidden, state = layer(
                hidden, self.table[ids] * index, bag, before=returned[max(0, index - 1)], scale=self.scale
            )
            returned.append(state)
        return hidden


def arguments_of(toy: nn.Module, hidden: HiddenStates, windows: Tensor = WINDOWS) -> WindowArguments:
    layers: Any = toy.layers
    return WindowArguments(Recorder(Decoder(toy, "", layers, "layers"), toy), windows, hidden, CPU)


@pytest.mark.parametrize("budget", [0, 1500, 1 << 20])
def test_layers_run_one_after_the_other_as_in_the_model(budget: int, tmp_path: Path) -> None:
    toy, hidden = Toy(), HiddenStates(budget, tmp_path)
    arguments = arguments_of(toy, hidden)
    twin, behind = arguments.twin(), [states.clone() for states in hidden]
    left = arguments._store.left
    for index, layer in enumerate(toy.layers):
        for number in (2, 0, 3, 1):
            arguments.through(layer, index, number, behind[number], keep=False)  # leaves no trace
            hidden[number] = arguments.through(layer, index, number, hidden[number], keep=True)
        arguments.drop(index)
        for number in range(4):
            behind[number] = twin.through(layer, index, number, behind[number], keep=True)
        twin.drop(index)
    for number, window in enumerate(WINDOWS):
        torch.testing.assert_close(hidden[number], toy(window[None]))
        assert torch.equal(hidden[number], behind[number])
    assert arguments._store.left == left  # nothing is kept behind the last layer but what depends on the text


def test_what_few_windows_show_to_depend_on_the_text_is_kept_for_all() -> None:
    class Marked(Toy):
        def forward(self, ids: Tensor) -> Tensor:
            self.scale = (ids == int(WINDOWS[3, 2])).float().mean()
            return super().forward(ids)

    toy, hidden = Marked(), HiddenStates()
    windows = WINDOWS.clone()
    windows[:3][windows[:3] == windows[3, 2]] = 0
    arguments = arguments_of(toy, hidden, windows)
    for index, layer in enumerate(toy.layers):
        for number in range(4):
            hidden[number] = arguments.through(layer, index, number, hidden[number], keep=True)
    for number, window in enumerate(windows):
        torch.testing.assert_close(hidden[number], toy(window[None]))


def refused(forward: Any, message: str) -> None:
    toy = type("Other", (Toy,), {"forward": forward})()
    with pytest.raises(NestQuantError, match=message):
        arguments_of(toy, HiddenStates())


def test_what_cannot_run_layer_by_layer_is_refused_by_the_true_reason() -> None:
    def others(self: Any, ids: Tensor) -> None:
        hidden = self.table[ids]
        for layer in self.layers:
            hidden = layer(hidden, hidden, {}, None, self.scale)[0] / 2

    def computed(self: Any, ids: Tensor) -> None:
        hidden, extra = self.table[ids], self.table[ids]
        for layer in self.layers:
            hidden, extra = layer(hidden, extra, {}, None, self.scale)
            extra = extra.cumsum(1)

    def backwards(self: Any, ids: Tensor) -> None:
        hidden = self.table[ids]
        for layer in reversed(self.layers):
            hidden, _ = layer(hidden, hidden, {}, None, self.scale)

    def written(self: Any, ids: Tensor) -> None:
        hidden = self.table[ids]
        for layer in self.layers:
            hidden, _ = layer(hidden, self.scale, {}, None, self.scale)
            hidden *= 2

    refused(others, r"layers\.1 is given other hidden states than layers\.0 returned")
    refused(computed, r"layers\.1 is given what the model computes between its layers")
    refused(backwards, r"layers\.1 is called after layers\.2")
    refused(written, "the model changes hidden states between its decoder layers")


def test_a_layer_that_changes_what_all_windows_are_given_is_refused() -> None:
    toy = Toy()
    arguments = arguments_of(toy, HiddenStates())
    with pytest.raises(NestQuantError, match=r"layers\.1 changes the tensors that it is given"), arguments.unchanged(1):
        toy.scale.mul_(2)
