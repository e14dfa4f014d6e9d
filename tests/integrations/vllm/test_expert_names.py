"""The names of experts' matrices, in the layout, in the checkpoint and in vLLM."""

import random

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.vllm.expert_names import (
    ExpertMatrix,
    expert_matrices,
    parameter_of,
    patterns,
    refuse_other_sizes,
    stored_name,
)
from nestquant_cli.modules.layout import REFLECTORS, LinearLayout

EXPERTS = 12  # so that the order of the numbers is not that of their texts


def layer_names(*parameters: str) -> list[str]:
    return [f"model.layers.3.mlp.experts.{name}.expert_{number}" for name in parameters for number in range(EXPERTS)]


def test_matrices_are_ordered_by_expert() -> None:
    names = layer_names("gate_up_proj") + layer_names("down_proj")
    shuffled = random.Random(0).sample(names[:EXPERTS], EXPERTS) + random.Random(1).sample(names[EXPERTS:], EXPERTS)
    first, last = expert_matrices(shuffled, EXPERTS)
    assert first == ExpertMatrix("gate_up_proj", names[:EXPERTS])
    assert last == ExpertMatrix("down_proj", names[EXPERTS:])


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (layer_names("gate_up_proj"), "have 1 coded matrices"),
        (layer_names("gate_proj", "up_proj", "down_proj"), "have 3 coded matrices"),
        (layer_names("gate_up_proj", "down_proj")[:-1], "11 of 12 experts have a coded down_proj"),
        (["model.layers.3.mlp.experts.0.gate_proj"], "modules of their own"),
    ],
)
def test_other_experts_are_refused(names: list[str], cause: str) -> None:
    with pytest.raises(NestQuantError, match=cause):
        expert_matrices(names, EXPERTS)


@pytest.mark.parametrize(("rows", "columns", "bias"), [(64, 32, True), (32, 64, False), (96, 32, False)])
def test_other_sizes_and_biases_are_refused(rows: int, columns: int, bias: bool) -> None:
    matrix = ExpertMatrix("gate_up_proj", ["experts.gate_up_proj.expert_0"])
    refuse_other_sizes(matrix, [LinearLayout(32, 64, False, "x", None)], 64, 32)
    with pytest.raises(NestQuantError, match="expert_0"):
        refuse_other_sizes(matrix, [LinearLayout(32, 64, bias, "x", None)], rows, columns)


def mapped(name: str, matrices: dict[str, str]) -> str:
    for pattern, replacement in patterns(matrices).items():
        name = pattern.sub(replacement, name)
    return name


def test_tensors_get_the_names_that_the_layer_takes() -> None:
    matrices = {"gate_up_proj": "w1", "down_proj": "w2"}
    path = "model.layers.3.block_sparse_moe.experts"
    expected = {
        f"{path}.gate_up_proj.expert_11.words": f"{path}.11.w1.words",
        f"{path}.down_proj.expert_0.row_scale": f"{path}.0.w2.row_scale",
        f"{path}.down_proj.expert_0.turn.reflectors": f"{path}.0.w2.turn_reflectors",
        "model.layers.3.self_attn.q_proj.turn.reflectors": "model.layers.3.self_attn.q_proj.turn.reflectors",
        "model.layers.3.mlp.shared_experts.down_proj.words": "model.layers.3.mlp.shared_experts.down_proj.words",
        f"{path}.other.expert_0.words": f"{path}.other.expert_0.words",
    }
    for name, wanted in expected.items():
        assert mapped(name, matrices) == wanted
        assert mapped(wanted, matrices) == wanted  # models inside models map names again


def test_parameters_have_names_without_dots() -> None:
    for name in ("words", "row_scale", "zeros", "lattice", REFLECTORS):
        assert "." not in parameter_of(name)
        assert stored_name(parameter_of(name)) == name
