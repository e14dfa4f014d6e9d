"""Experts beyond the budget are read when they are used; the layer computes what it does with all of them held."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models import on_demand
from nestquant_cli.models.as_linears import experts_of
from nestquant_cli.models.on_demand import OnDemandLinear, beyond_budget, stored_weight
from nestquant_cli.models.source import resolve
from nestquant_cli.models.structure import linears
from nestquant_cli.models.weights import open_weights
from tests.converted import converted
from tests.families import random_ids, save_model

BUDGET = 5000  # bytes: a few of the experts' matrices of 24 × 16 in bfloat16


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "llama4", "deepseek_v3"])
def test_a_layer_with_experts_on_demand_computes_the_same(
    kind: str, tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(converted(kind), tiny_tokenizer_folder, tmp_path / "model")
    whole: Any = load_model(resolve(str(folder)))
    whole.set_experts_implementation("eager")
    monkeypatch.setattr(on_demand, "EXPERTS", BUDGET)
    weights = open_weights(resolve(str(folder)), "cpu")
    depth = len(weights.decoder.layers)
    held = [weights.around(), *(weights.layer(index) for index in range(depth))]
    ids = [random_ids(1, 12, seed) for seed in range(4)]
    with torch.no_grad():
        expected = [whole.model(input_ids=each).last_hidden_state for each in ids]
        for part in held:
            part.__enter__()
        layer = weights.decoder.layers[depth - 1]
        left = {name: layer.get_submodule(name) for name in beyond_budget(layer)}
        total = sum(stored_weight(linear).nbytes for experts in experts_of(layer).values() for linear in experts)
        assert sum(stored_weight(linear).nbytes for linear in left.values()) >= total - BUDGET > 0
        assert all(isinstance(linear, OnDemandLinear) and stored_weight(linear).is_meta for linear in left.values())
        lazy: Any = weights.decoder.owner
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(lambda each: lazy(input_ids=each).last_hidden_state), ids))
        for part in held:
            part.__exit__(None, None, None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
    assert all(parameter.is_meta for parameter in weights.model.parameters())


def test_a_block_of_experts_is_held(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(converted("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    monkeypatch.setattr(on_demand, "EXPERTS", 0)
    weights = open_weights(resolve(str(folder)), "cpu")
    layer, prefix = weights.decoder.layers[1], weights.decoder.layer_name(1)
    block = [name for name in linears(layer) if "experts" in name][2:5]
    with weights.layer(1), weights.holding([f"{prefix}.{name}" for name in block]):
        for name, linear in linears(layer).items():
            assert stored_weight(linear).is_meta == ("experts" in name and name not in block)
            assert torch.equal(linear.weight, weights.fetch(f"{prefix}.{name}.weight"))
            assert ("experts" not in name) or (linear.weight is linear.weight) == (name in block)
    assert all(parameter.is_meta for parameter in weights.model.parameters())
