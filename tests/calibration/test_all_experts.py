"""Every token at every expert: what is measured, and that the model goes on as its router decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.all_experts import every_token, is_routed_call, refuse_undriven
from nestquant_cli.calibration.fit_settings import FitSettings
from nestquant_cli.calibration.hidden_states import HiddenStates
from nestquant_cli.calibration.measure_layers import measure_layers
from nestquant_cli.calibration.statistics import InputStatistics
from nestquant_cli.checkpoint.manifest import REPORT
from nestquant_cli.models.structure import open_decoder
from nestquant_cli.models.weights import Weights
from nestquant_cli.storage.files import read_json
from tests.expert_models import make_experts
from tests.families import make_model, pack, random_ids, save_model

ROUTED = FitSettings(None, None, 0)
WINDOWS = random_ids(3, 16)


def measured(settings: FitSettings, budget: int = 1 << 30) -> tuple[list[dict[str, InputStatistics]], list[Tensor]]:
    """Statistics of each layer's inputs, and the hidden states behind the last layer."""
    hidden = HiddenStates()
    weights = Weights(make_experts("mixtral"))
    layers: list[dict[str, InputStatistics]] = []
    for parts in measure_layers(weights, WINDOWS, settings, hidden=hidden, budget=budget):
        assert parts is not None
        layers.append({name: item for part in parts for name, item in part.inputs.items()})
    return layers, [*hidden]


@pytest.mark.parametrize("budget", [1 << 30, 1])
def test_each_expert_is_measured_on_all_tokens_and_the_rest_stays(budget: int) -> None:
    routed, hidden = measured(ROUTED)
    everywhere, same = measured(replace(ROUTED, all_experts=True), budget)
    assert all(map(torch.equal, hidden, same))
    for before, after in zip(routed, everywhere, strict=True):
        assert before.keys() == after.keys()
        first: dict[str, Tensor] = {}
        for name, item in after.items():
            if item.tokens is None:
                assert torch.equal(item.hessian, before[name].hessian)
                continue
            assert item.tokens == WINDOWS.numel()
            if "gate_up" in name:  # whose input is the same for all of them
                torch.testing.assert_close(item.hessian, first.setdefault("gate_up", item.hessian))
        assert first


def test_calls_of_the_router_are_told_apart() -> None:
    layer: Any = open_decoder(make_experts("mixtral")).layers[0]
    experts, calls = layer.mlp.experts, []
    experts.gate_up_proj.at(1).register_forward_pre_hook(
        lambda *args: calls.append((is_routed_call(), len(args[1][0])))
    )
    hidden, choice = torch.randn(5, layer.mlp.experts.gate_up_proj.in_features), torch.ones(5, 1, dtype=torch.int64)
    weights = torch.ones(5, 1)
    expected = experts(hidden, choice, weights)
    calls.clear()
    with every_token(layer):
        assert torch.equal(experts(hidden, choice, top_k_weights=weights), expected)
    assert calls == [(False, 5), (True, 5)] and not is_routed_call()
    with every_token(layer, {0}):
        experts(hidden, choice, weights)
    assert calls[2:] == [(True, 5)]


@pytest.mark.parametrize(("kind", "cause"), [("llama4", "cannot be given every token"), ("llama", "has no experts")])
def test_models_that_cannot_be_driven_so_are_refused(kind: str, cause: str) -> None:
    decoder = open_decoder(make_model(kind) if kind == "llama" else make_experts(kind))
    with pytest.raises(NestQuantError, match=cause):
        refuse_undriven(decoder.layers, decoder.prefix)


def test_the_report_says_it(tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    folder = save_model(make_experts("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    for all_experts in (False, True):
        packed = pack(folder, tiny_text_file, tmp_path / f"packed-{all_experts}", all_experts=all_experts)
        report = read_json(packed / REPORT)
        assert report["recipe"].get("all_experts", False) is all_experts
        tokens = {record["tokens"] for name, record in report["matrices"].items() if ".experts." in name}
        assert (tokens == {4 * 64}) is all_experts
