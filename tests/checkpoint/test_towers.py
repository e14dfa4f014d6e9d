"""Which tensors are of towers, by their names."""

import pytest

from nestquant_cli.checkpoint.towers import has_parts, tower_tensors
from nestquant_cli.models.language_model import tower_stacks
from nestquant_cli.models.structure import find_decoder
from scripts.architectures.tiny import build


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "llama4", "smolvlm", "gemma4"])
def test_the_towers_are_all_that_is_neither_language_model_nor_head(family: str) -> None:
    model = build(family)
    names = list(model.state_dict())
    found = tower_tensors(names, find_decoder(model).prefix)
    assert has_parts(model.config.to_dict())
    towers = tuple(f"{name}." for name in tower_stacks(model))
    assert towers and all(name in found for name in names if name.startswith(towers))
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        own = {
            name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is embeddings.weight
        }
        assert own and not own & found
    assert not any(name.startswith(f"{find_decoder(model).owner_name}.") for name in found)


def test_a_single_matrix_with_a_number_is_no_tower() -> None:
    names = ["model.projections.0.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up.weight"]
    assert tower_tensors(names, "model.layers") == set()


def test_a_model_of_text_has_no_parts() -> None:
    assert not has_parts({"hidden_size": 8, "quantization_config": {}})
