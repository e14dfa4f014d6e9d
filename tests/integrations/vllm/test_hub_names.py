"""Names of a checkpoint brought into the form of the Hub."""

from nestquant_cli.integrations.vllm.hub_names import HubNames


def names_of(*parts: str) -> list[str]:
    return [f"model.layers.0.{part}" for part in parts]


def test_names_of_a_class_that_renames_its_experts() -> None:
    names = names_of("self_attn.q_proj", "mlp.experts.gate_up_proj.expert_0", "mlp.experts.down_proj.expert_0")
    hub = HubNames(["mixtral"], names)
    assert hub.map_name("model.layers.0.mlp.gate.weight") == "model.layers.0.block_sparse_moe.gate.weight"
    moved = [hub.map_name(name) for name in names]
    assert moved == names_of(
        "self_attn.q_proj",
        "block_sparse_moe.experts.gate_up_proj.expert_0",
        "block_sparse_moe.experts.down_proj.expert_0",
    )
    assert [hub.map_name(name) for name in moved] == moved


def test_other_names_stay() -> None:
    experts = names_of("mlp.experts.gate_up_proj.expert_0")
    assert not HubNames(["qwen3_moe"], experts).renamings  # its class has the names of the Hub
    assert not HubNames(["no such model"], experts).renamings
    assert not HubNames([], experts).renamings
    dense = names_of("mlp.down_proj")
    assert not HubNames(["mixtral"], dense).renamings
    assert HubNames(["mixtral"], dense).map_name(dense[0]) == dense[0]


def test_the_matrix_of_an_expert_keeps_its_name() -> None:
    names = names_of("block_sparse_moe.experts.gate_up_proj.expert_0", "block_sparse_moe.experts.down_proj.expert_0")
    hub = HubNames(["granitemoe"], names)  # has all experts in one `input_linear` on the Hub
    assert [hub.map_name(name) for name in names] == names
