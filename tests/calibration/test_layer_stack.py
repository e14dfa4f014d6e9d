"""The layers run one at a time reproduce the model's own hidden states, in every family."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.kv_observer import KVObserver
from nestquant_cli.calibration.layer_stack import LayerStack
from nestquant_cli.models.weights import Weights
from tests.families import ALL_CONFIGS, WINDOW, make_model, random_ids

TOKENS = 3 * WINDOW


def stack_of(model: PreTrainedModel, windows: Tensor) -> LayerStack:
    return LayerStack(Weights(model), windows, KVObserver(model.config, 1.0))


def hidden_states(model: PreTrainedModel, windows: Tensor) -> list[Tensor]:
    """What the model itself says is in front of each layer: (windows, tokens, width) each."""
    call: Any = model
    with torch.inference_mode():
        states: tuple[Tensor, ...] = call(input_ids=windows, output_hidden_states=True, use_cache=False).hidden_states
    return list(states)


@pytest.mark.parametrize("family", ALL_CONFIGS)
def test_layer_by_layer_equals_the_model(family: str) -> None:
    model, windows = make_model(family), random_ids(3, TOKENS)
    expected = hidden_states(model, windows)
    stack = stack_of(model, windows)
    for index in range(len(stack.decoder.layers)):
        torch.testing.assert_close(torch.cat(list(stack.hidden), -3), expected[index], rtol=1e-5, atol=1e-5)
        assert [number for numbers in stack.run(index) for number in numbers] == [0, 1, 2]
    assert all("forward" not in layer.__dict__ for layer in stack.decoder.layers)


def test_one_window_is_enough() -> None:
    model, windows = make_model("gemma2"), random_ids(1, TOKENS)
    stack = stack_of(model, windows)
    list(stack.run(0))
    torch.testing.assert_close(stack.hidden[0], hidden_states(model, windows)[1], rtol=1e-5, atol=1e-5)


def test_what_is_computed_between_layers_is_refused() -> None:
    model = make_model("llama")

    def add(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"residual": [args[0].mean(-1)]}

    Weights(model).decoder.layers[1].register_forward_pre_hook(add, with_kwargs=True)
    with pytest.raises(NestQuantError, match=r"layers\.1 is given what the model computes between its layers"):
        stack_of(model, random_ids(1, 8))


def test_layers_that_run_twice_or_never_are_refused() -> None:
    model: Any = make_model("llama")
    forward = model.model.forward
    model.model.forward = lambda **kwargs: (forward(**kwargs), forward(**kwargs))[1]
    with pytest.raises(NestQuantError, match=r"layers\.0 is called more than once"):
        stack_of(model, random_ids(1, 8))
    model.model.forward = lambda **kwargs: None
    with pytest.raises(NestQuantError, match="the decoder layers are not called"):
        stack_of(model, random_ids(1, 8))
