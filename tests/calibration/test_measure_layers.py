from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.fit_settings import FitSettings
from nestquant_cli.calibration.hidden_states import HiddenStates
from nestquant_cli.calibration.kv_observer import KVObserver
from nestquant_cli.calibration.measure_layers import measure_layers
from nestquant_cli.calibration.sequential import QuantizerCallbacks
from nestquant_cli.calibration.statistics import LayerStatistics
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.models.structure import linears
from nestquant_cli.models.weights import Weights
from tests.families import ALL_CONFIGS, from_config, make_model, random_ids, relative_error

FOUR = shape_for_bits(4)
SETTINGS = FitSettings(FOUR, FOUR, 0)


def statistics(
    model: PreTrainedModel, settings: FitSettings = SETTINGS, **options: Any
) -> Iterator[LayerStatistics | None]:
    for parts in measure_layers(Weights(model), random_ids(2, 24), settings, **options):
        yield None if parts is None else LayerStatistics.join(parts)


def assert_equal(one: LayerStatistics | None, other: LayerStatistics | None) -> None:
    assert one is not None and other is not None
    assert one.cache == other.cache and one.inputs.keys() == other.inputs.keys()
    for name, item in one.inputs.items():
        found = other.inputs[name]
        assert (item.members, item.code) == (found.members, found.code)
        assert torch.equal(item.hessian, found.hessian) and torch.equal(item.noise, found.noise)


def hessians(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    """E[x xᵀ] of the input of every Linear that the model itself calls, by full name."""
    decoder, calls = Weights(model).decoder, dict[str, list[Tensor]]()
    for index, layer in enumerate(decoder.layers):
        for name, linear in linears(layer).items():

            def see(_: object, args: tuple[Tensor, ...], name: str = f"{index}.{name}") -> None:
                x = args[0].flatten(0, -2).double()
                calls.setdefault(name, []).append(x)

            linear.register_forward_pre_hook(see)
    with torch.inference_mode():
        model(input_ids=windows, use_cache=False)
    tokens = {name: torch.cat(seen) for name, seen in calls.items()}
    return {name: x.t() @ x / len(x) for name, x in tokens.items()}


@pytest.mark.parametrize("family", ALL_CONFIGS)
def test_hessians_are_those_of_the_model(family: str) -> None:
    windows, settings = random_ids(3, 40), FitSettings(None, None, 0, rotation="none")
    expected = hessians(make_model(family), windows)
    for index, parts in enumerate(measure_layers(Weights(make_model(family)), windows, settings)):
        assert parts is not None
        for item in LayerStatistics.join(parts).inputs.values():
            for name in item.members:
                hessian = expected.pop(f"{index}.{name}")
                found = item.hessian[: len(hessian), : len(hessian)]
                assert relative_error(found, hessian) < 0.02, f"{index}.{name}"
    assert not expected


def twice(model: Any) -> PreTrainedModel:
    """The model with an MLP that is called twice in its second layer, on other tokens."""
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) + forward(x[:, :1] * 3)
    found: PreTrainedModel = model
    return found


def test_a_linear_that_is_called_twice_sees_the_tokens_of_both_calls() -> None:
    windows = random_ids(3, 40)
    expected = hessians(twice(make_model("llama")), windows)
    settings = FitSettings(None, None, 0, "none")
    stream = measure_layers(Weights(twice(make_model("llama"))), windows, settings)
    layers = [LayerStatistics.join(parts) for parts in stream if parts is not None]
    for name in ("mlp.gate_proj", "mlp.down_proj"):
        assert relative_error(layers[1].inputs[name].hessian, expected[f"1.{name}"]) < 0.03
    callbacks = QuantizerCallbacks(lambda *_: {}, lambda *_: {}, lambda _: HiddenStates())
    with pytest.raises(NestQuantError, match=r"layers\.1\.mlp\.\w+ is called several times .* without --sequential"):
        list(measure_layers(Weights(twice(make_model("llama"))), windows, SETTINGS, callbacks=callbacks))


def test_every_distinct_input_has_statistics() -> None:
    layers = list(statistics(make_model("qwen2")))
    assert len(layers) == 2
    for layer in layers:
        assert layer is not None and layer.cache is not None
        members = {name: item.members for name, item in layer.inputs.items()}
        assert members == {
            "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj": ("self_attn.o_proj",),
            "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down_proj": ("mlp.down_proj",),
        }
        assert layer.inputs["mlp.down_proj"].hessian.shape == (128, 128)


def test_sixteen_bits_ask_for_no_codes() -> None:
    for layer in statistics(make_model("llama"), FitSettings(None, None, 0)):
        assert layer is not None and layer.cache is None
        assert all(item.code is None and not item.noise.any() for item in layer.inputs.values())


@pytest.mark.parametrize("skip", [[True, False, False, True], [True, True, False, False]])
def test_skipped_layers_leave_the_others_as_they_are(skip: list[bool]) -> None:
    model = make_model("gemma2")
    whole = list(statistics(model))
    for skipped, expected, found in zip(skip, whole, statistics(model, skip=skip), strict=True):
        if skipped:
            assert found is None
        else:
            assert_equal(found, expected)


def test_head_sizes_that_blocks_do_not_divide_are_refused_for_the_cache_only() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
    }
    model = from_config(LlamaConfig(vocab_size=300, **sizes))
    with pytest.raises(NestQuantError, match=r"head size 12 is not a multiple of 8.*--kv-bits 16"):
        list(statistics(model))
    assert len(list(statistics(model, FitSettings(FOUR, None, 0)))) == 1


def test_hidden_states_that_are_not_finite_name_the_layer_and_the_window() -> None:
    model: Any = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.fill_(float("inf"))
    with pytest.raises(NestQuantError, match=r"layers\.1 has NaN or infinite values on calibration window 0"):
        list(statistics(model))


def test_a_layer_that_keeps_no_keys_and_values_has_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVObserver, "sees", lambda self, index: index != 0)
    assert [layer.cache is None for layer in statistics(make_model("llama"))] == [True, False]
