"""Sensitivities: the trace that LDLQ leaves, and every matrix measured the same every time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nestquant_cli.calibration.measure_layers import measure_layers
from nestquant_cli.calibration.statistics import InputStatistics
from nestquant_cli.evaluation.divergence import divergence
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.parallel.team import Team
from nestquant_cli.pipeline.calibration_windows import read_windows
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.sensitivity import feedback_trace, measure_sensitivities
from nestquant_cli.pipeline.statistics_source import fit_settings
from nestquant_cli.quantization.allocation import INPUTS
from nestquant_cli.quantization.factors import feedback
from nestquant_cli.rotation.seeds import scaled
from tests.families import gaussian, load, logits


def test_the_trace_is_what_feedback_leaves() -> None:
    x = gaussian(200, 32) * torch.linspace(0.1, 2, 32)
    hessian, noise = x.t() @ x / 200, torch.full((32,), 0.01)
    trace = feedback_trace(InputStatistics(("a",), hessian, noise, None), 0.01)
    lower = feedback(torch.zeros_like(hessian), hessian, noise, 0.01, "a").lower.double()
    metric = hessian.double() + torch.diag(noise.double() + 0.01 * hessian.diagonal().double().mean())
    inverse = torch.linalg.inv(lower)
    assert trace == pytest.approx(float((inverse @ metric @ inverse.t()).diagonal().sum()), rel=1e-4)
    assert trace < float(metric.diagonal().sum())


def test_every_matrix_is_measured_and_the_same_every_time(tiny_model_folder: Path, tiny_text_file: Path) -> None:
    recipe = Recipe(dataset=str(tiny_text_file), samples=3, seqlen=48)
    original = open_original(resolve(str(tiny_model_folder)), "cpu")
    windows = read_windows(original, recipe).ids
    measured = measure_sensitivities(original, recipe, windows, Team())
    found = measured.matrices
    assert measured.inputs == {}
    assert len(found) == 14 and all(item.cost > 0 for item in found.values())
    assert found["model.layers.1.mlp.down_proj"].weights == 64 * 128
    inputs = {name.rpartition(".")[2]: item.input for name, item in found.items() if ".layers.1." in name}
    attention, mlp = (f"model.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj"))
    assert {inputs[name] for name in ("q_proj", "k_proj", "v_proj")} == {attention}
    assert {inputs[name] for name in ("gate_proj", "up_proj")} == {mlp}
    assert inputs["o_proj"] == "model.layers.1.self_attn.o_proj"
    assert measure_sensitivities(original, recipe, windows, Team()) == measured


def test_an_input_costs_what_its_noise_costs(tiny_model_folder: Path, tiny_text_file: Path) -> None:
    """The sum over the inputs predicts the KL divergence of a model whose inputs alone are rounded."""
    recipe = Recipe(dataset=str(tiny_text_file), samples=4, seqlen=64, act_allocation="mixed", channel_scales=True)
    original = open_original(resolve(str(tiny_model_folder)), "cpu")
    windows = read_windows(original, recipe).ids
    found = measure_sensitivities(original, recipe, windows, Team()).inputs
    assert len(found) == 8 and found["model.layers.0.mlp.down_proj"].weights == 128
    model = load(tiny_model_folder)
    before = logits(model, windows).log_softmax(-1)
    settings = fit_settings(recipe, original.depth)
    handles = []
    for index, parts in enumerate(measure_layers(original.weights, windows, settings)):
        layer = model.get_submodule(original.weights.decoder.layer_name(index))
        for item in (item for part in parts or () for item in part.inputs.values()):
            features = layer.get_submodule(item.members[0]).in_features
            seed = scaled(settings.rotation_seed, item.factors)
            rounds = InputQuantizer(features, seed, item.code)
            for member in item.members:
                handles.append(layer.get_submodule(member).register_forward_pre_hook(rounding(rounds)))
    measured = float(divergence(before, logits(model, windows).log_softmax(-1))[0].mean())
    for handle in handles:
        handle.remove()
    assert measured == pytest.approx(sum(item.loss(32, INPUTS) for item in found.values()), rel=0.3)


def rounding(quantizer: InputQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def see(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        back = quantizer.rotation.inverse(quantizer.floats(args[0]))[:, : quantizer.features]
        return (back.view(args[0].shape).to(args[0].dtype),)

    return see
