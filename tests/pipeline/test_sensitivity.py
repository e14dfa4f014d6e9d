"""Sensitivities: the trace that LDLQ leaves, and every matrix measured the same every time."""

from pathlib import Path

import pytest
import torch

from nestquant_cli.calibration.statistics import InputStatistics
from nestquant_cli.models.source import resolve
from nestquant_cli.parallel.team import Team
from nestquant_cli.pipeline.calibration_windows import read_windows
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.sensitivity import feedback_trace, measure_sensitivities
from nestquant_cli.quantization.factors import feedback
from tests.families import gaussian


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
    found = measure_sensitivities(original, recipe, windows, Team())
    assert len(found) == 14 and all(item.cost > 0 for item in found.values())
    assert found["model.layers.1.mlp.down_proj"].weights == 64 * 128
    inputs = {name.rpartition(".")[2]: item.input for name, item in found.items() if ".layers.1." in name}
    attention, mlp = (f"model.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj"))
    assert {inputs[name] for name in ("q_proj", "k_proj", "v_proj")} == {attention}
    assert {inputs[name] for name in ("gate_proj", "up_proj")} == {mlp}
    assert inputs["o_proj"] == "model.layers.1.self_attn.o_proj"
    assert measure_sensitivities(original, recipe, windows, Team()) == found
