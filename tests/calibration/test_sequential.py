import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from nestquant_cli.calibration import sequential
from nestquant_cli.calibration.fit_settings import FitSettings
from nestquant_cli.calibration.hidden_states import HiddenStates
from nestquant_cli.calibration.measure_layers import measure_layers
from nestquant_cli.calibration.sequential import QuantizerCallbacks
from nestquant_cli.calibration.statistics import InputStatistics, LayerStatistics
from nestquant_cli.codecs.registry import shape_of
from nestquant_cli.models.structure import find_decoder, linears
from nestquant_cli.models.weights import Weights
from nestquant_cli.rotation.seeds import scaled as scaled_seed
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, make_model, random_ids

WINDOWS = random_ids(3, 24)
FOUR = shape_of("nestquant", 4, None, "act")
SETTINGS = FitSettings(None, None, 5)


class Altering:
    """Takes statistics and hands back the model's weights, each with noise of its own."""

    def __init__(self, model: PreTrainedModel, size: float) -> None:
        self.layers, self.size = find_decoder(model).layers, size
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def quantize(self, index: int, item: InputStatistics) -> dict[str, Tensor]:
        self.seen.append((index, item.members))
        return {name: self.weight(index, name) for name in item.members}

    def quantized(self, index: int) -> dict[str, Tensor]:
        return {name: self.weight(index, name) for name in linears(self.layers[index])}

    def weight(self, index: int, name: str) -> Tensor:
        weight = linears(self.layers[index])[name].weight.detach()
        seed = sum(map(ord, f"{index} {name}"))
        return weight + self.size * float(weight.std()) * gaussian(*weight.shape, seed=seed)


def whole(stream: Iterator[Iterator[LayerStatistics] | None]) -> Iterator[LayerStatistics | None]:
    return (None if parts is None else LayerStatistics.join(parts) for parts in stream)


def statistics(
    model: PreTrainedModel, altering: Altering, skip: list[bool] | None = None, settings: FitSettings = SETTINGS
) -> Iterator[LayerStatistics | None]:
    callbacks = QuantizerCallbacks(altering.quantize, altering.quantized, lambda share: HiddenStates(1 << 20))
    return whole(measure_layers(Weights(model), WINDOWS, settings, skip, callbacks=callbacks))


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """What every Linear of the decoder layers is called with (tokens, features), in the rotated basis."""
    found: dict[str, Tensor] = {}
    decoder = find_decoder(model)
    for index, layer in enumerate(decoder.layers):
        for name, linear in linears(layer).items():

            def see(_: Any, args: tuple[Tensor, ...], name: str = f"{index}.{name}") -> None:
                x = args[0].flatten(0, 1).float()
                padded = F.pad(x, (0, -x.shape[1] % 8))
                found[name] = rotation(padded.shape[1], SETTINGS.seed).apply(padded)

            linear.register_forward_pre_hook(see)
    call: Any = model
    with torch.inference_mode():
        call(input_ids=WINDOWS, use_cache=False)
    return found


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_inputs_are_those_behind_every_quantized_matrix_before(family: str) -> None:
    model = make_model(family)
    altering = Altering(model, 0.2)
    layers = list(statistics(model, altering))
    quantized = make_model(family)
    for index, layer in enumerate(find_decoder(quantized).layers):
        for name, linear in linears(layer).items():
            linear.weight.data = altering.weight(index, name)
    before, behind = inputs_of(make_model(family)), inputs_of(quantized)
    for index, layer in enumerate(layers):
        assert layer is not None and layer.cache is None
        for leader, item in layer.inputs.items():
            x, y = before[f"{index}.{leader}"], behind[f"{index}.{leader}"]
            assert item.cross is not None
            hessian, cross = y.t() @ y / len(y), x.t() @ y / len(y)
            assert difference(item.hessian, hessian) < 0.02  # that of their grids
            assert difference(item.cross, cross) < 0.02
            assert index == 0 or difference(hessian, cross) > 0.05
    members = [(index, item.members) for index, layer in enumerate(layers) for item in layer.inputs.values()]  # type: ignore[union-attr]
    assert altering.seen == members


@pytest.mark.parametrize("correction", [0.0, 0.25])
def test_a_damped_correction_lies_between_both_moments(correction: float) -> None:
    settings = replace(SETTINGS, drift_correction=correction)
    whole = statistics(make_model("llama"), Altering(make_model("llama"), 0.2))
    damped = statistics(make_model("llama"), Altering(make_model("llama"), 0.2), settings=settings)
    for full, found in zip(whole, damped, strict=True):
        assert full is not None and found is not None
        for name, item in full.inputs.items():
            hessian, cross = found.inputs[name].hessian, found.inputs[name].cross
            assert item.cross is not None and torch.equal(hessian, item.hessian)
            if correction == 0:
                assert cross is None
                continue
            assert cross is not None
            assert difference(cross, (1 - correction) * item.hessian + correction * item.cross) < 1e-6


ADDED = {
    "llama": {"self_attn.o_proj": [], "mlp.down_proj": ["self_attn.o_proj"]},
    "gpt_neox": {"attention.dense": [], "mlp.dense_4h_to_h": ["attention.dense"]},
    "gemma2": {},
}  # the Linears whose products are added to the residual stream, and those that are added before each of them


def streams_of(model: PreTrainedModel, added: dict[str, list[str]]) -> dict[str, Tensor]:
    """The residual stream in front of each of these Linears of all layers (tokens, width)."""
    products: dict[str, Tensor] = {}
    decoder = find_decoder(model)
    for index, layer in enumerate(decoder.layers):

        def begin(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], index: int = index) -> None:
            products[f"{index}"] = args[0] if args else kwargs["hidden_states"]

        layer.register_forward_pre_hook(begin, with_kwargs=True)
        for name in added:
            put = partial(lambda key, _, args, y: products.update({key: y}), f"{index}.{name}")
            linears(layer)[name].register_forward_hook(put)
    call: Any = model
    with torch.inference_mode():
        call(input_ids=WINDOWS, use_cache=False)
    return {
        f"{index}.{name}": sum([products[f"{index}.{each}"] for each in before], products[f"{index}"]).flatten(0, 1)
        for index in range(len(decoder.layers))
        for name, before in added.items()
    }


@pytest.mark.parametrize(
    ("family", "scaled"), [("llama", False), ("gpt_neox", False), ("gemma2", False), ("llama", True)]
)
def test_errors_of_the_residual_stream_are_those_behind_every_quantized_matrix_before(
    family: str, scaled: bool
) -> None:
    codes = {"act_shape": FOUR, "weight_shape": FOUR, "channel_scales": True} if scaled else {}
    settings = replace(SETTINGS, residual_correction=0.25, **codes)
    altering = Altering(make_model(family), 0.2)
    plain = list(statistics(make_model(family), Altering(make_model(family), 0.2), settings=replace(SETTINGS, **codes)))
    layers = list(statistics(make_model(family), altering, settings=settings))
    quantized = make_model(family)
    for index, layer in enumerate(find_decoder(quantized).layers):
        for name, linear in linears(layer).items():
            linear.weight.data = altering.weight(index, name)
    before, behind = (streams_of(model, ADDED[family]) for model in (make_model(family), copy.deepcopy(quantized)))
    inputs = inputs_of(quantized)
    for index, (layer, other) in enumerate(zip(layers, plain, strict=True)):
        assert layer is not None and other is not None
        found = {name for name, item in layer.inputs.items() if item.residual is not None}
        assert found == set(ADDED[family])
        for name, item in layer.inputs.items():
            alone = other.inputs[name]
            assert alone.residual is None and torch.equal(alone.hessian, item.hessian)
            assert torch.equal(alone.cross, item.cross)  # type: ignore[arg-type]
        for name in found:
            key, item = f"{index}.{name}", layer.inputs[name]
            drift, y = before[key] - behind[key], inputs[key]
            order = y.shape[1]
            if scaled:
                y = rotation(order, scaled_seed(SETTINGS.seed, item.factors)).apply(rotation(order, 5).inverse(y))
            wanted = 0.25 * drift.t() @ y / len(y)
            assert item.residual is not None and item.residual.shape == wanted.shape
            if not drift.any():
                assert index == 0 and not item.residual.any()
                continue
            assert difference(item.residual, wanted) < 0.02  # that of their grids


def test_a_residual_is_for_a_matrix_that_has_its_input_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "residual_adders", lambda *_: ("self_attn.q_proj", "self_attn.o_proj"))
    settings = replace(SETTINGS, residual_correction=0.5)
    for layer in statistics(make_model("llama"), Altering(make_model("llama"), 0.2), settings=settings):
        assert layer is not None
        assert [name for name, item in layer.inputs.items() if item.residual is not None] == ["self_attn.o_proj"]


@pytest.mark.parametrize("skip", [None, [True, False, False, False]])
def test_codes_of_keys_and_values_are_those_of_the_original(skip: list[bool] | None) -> None:
    model, settings = make_model("gemma2"), FitSettings(FOUR, FOUR, 5)
    plain = list(whole(measure_layers(Weights(model), WINDOWS, settings)))
    found = list(statistics(model, Altering(model, 0.2), skip, settings))
    for one, other in zip(plain, found, strict=True):
        if other is None:
            continue
        assert one is not None and one.cache is not None and other.cache is not None
        assert one.cache.to_dict() == other.cache.to_dict()


def test_unchanged_weights_leave_the_ordinary_statistics() -> None:
    model = make_model("qwen2")
    sequential = statistics(model, Altering(model, 0.0))
    for plain, found in zip(whole(measure_layers(Weights(model), WINDOWS, SETTINGS)), sequential, strict=True):
        assert plain is not None and found is not None
        for name, item in plain.inputs.items():
            other = found.inputs[name]
            assert other.members == item.members and other.cross is not None
            assert torch.equal(other.hessian, item.hessian) and torch.equal(other.cross, item.hessian)


def test_the_model_keeps_its_weights() -> None:
    model = make_model("llama")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(statistics(model, Altering(model, 0.5)))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("skip", [[True, False, False, True], [True, True, False, False]])
def test_skipped_layers_are_passed_as_they_were_quantized(skip: list[bool]) -> None:
    model = make_model("gemma2")
    whole = list(statistics(model, Altering(model, 0.2)))
    for skipped, expected, found in zip(skip, whole, statistics(model, Altering(model, 0.2), skip), strict=True):
        assert (found is None) == skipped
        if expected is None or found is None:
            continue
        for name, item in expected.inputs.items():
            other = found.inputs[name]
            assert item.cross is not None and other.cross is not None
            assert torch.equal(item.hessian, other.hessian) and torch.equal(item.cross, other.cross)
