"""Decoders are found by structure; what is not supported is refused by name, with the reason."""

from typing import Any

import pytest
from torch import nn
from transformers import (
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.structure import find_decoder, linears, refuse_unsupported
from tests.families import CONFIGS, make_model

PREFIXES = {"opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
MIXTURE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama")


@pytest.mark.parametrize("family", CONFIGS)
def test_the_stack_is_found_in_every_family(family: str) -> None:
    model = make_model(family)
    decoder = find_decoder(model)
    assert decoder.prefix == PREFIXES.get(family, "model.layers")
    assert model.get_submodule(decoder.layer_name(1)) is decoder.layers[1]
    assert model.get_submodule(decoder.owner_name) is decoder.owner
    assert len(decoder.layers) == model.config.num_hidden_layers


def test_linears_are_named_within_the_layer(llama: PreTrainedModel) -> None:
    names = list(linears(find_decoder(llama).layers[0]))
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    assert names == [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(NestQuantError, match="T5ForConditionalGeneration is an encoder–decoder"):
        refuse_unsupported(model)


def test_a_model_without_one_stack_is_refused_by_the_stacks_that_it_has(llama: PreTrainedModel) -> None:
    inner: Any = llama.model
    inner.others, inner.layers = nn.ModuleList([inner.layers[1]]), nn.ModuleList([inner.layers[0]])
    with pytest.raises(NestQuantError, match=r"not one stack .*: its layers are in model\.layers \(1\), model\.others"):
        find_decoder(llama)
    inner.layer, inner.others = inner.layers[0], nn.ModuleList()
    inner.layers = nn.ModuleList([nn.Linear(64, 8)])  # such as another head
    with pytest.raises(NestQuantError, match=r"not one stack .*: what it has is model\.layers \(1\), and .* counts 2;"):
        find_decoder(llama)
    inner.layers = nn.ModuleList()
    with pytest.raises(NestQuantError, match=r"nn\.Linear inside: it has none, and config\.json counts 2; it was not"):
        find_decoder(llama)


def test_the_only_stack_is_found_whatever_the_configuration_counts(llama: PreTrainedModel) -> None:
    llama.config.num_hidden_layers = 4  # attentions, of which a layer may have two
    assert find_decoder(llama).prefix == "model.layers" and len(find_decoder(llama).layers) == 2


def test_layers_whose_weights_belong_to_other_parts_are_refused(llama: PreTrainedModel) -> None:
    ties: Any = llama.all_tied_weights_keys
    ties["model.layers.1.mlp.up_proj.weight"] = "model.layers.0.mlp.up_proj.weight"
    find_decoder(llama)
    ties["model.layers.0.mlp.up_proj.weight"] = "model.others.0.mlp.up_proj.weight"
    with pytest.raises(NestQuantError, match=r"elsewhere, too: model\.layers\.0\.mlp\S+ is model\.others\.0\.mlp"):
        find_decoder(llama)
