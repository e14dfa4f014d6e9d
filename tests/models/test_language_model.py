"""The language model inside a model of images with text."""

import pytest
import torch
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, PreTrainedModel

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.language_model import refuse_without_text, runner, tower_stacks
from nestquant_cli.models.structure import find_decoder
from scripts.architectures.tiny import build
from tests.families import make_model

# The tiny models have as many layers in the tower as in the text, but for Gemma 3, whose text has more.
TOWERS = {
    "llava": "model.vision_tower.encoder.layers",
    "gemma3": "model.vision_tower.encoder.layers",
    "qwen2_vl": "model.visual.blocks",
    "smolvlm": "model.vision_model.encoder.layers",
    "llama4": "vision_model.model.layers",  # a model without a base around tower and text
    "paligemma": "model.vision_tower.encoder.layers",  # the model around the text numbers its positions from one
}


@pytest.mark.parametrize("family", TOWERS)
def test_the_layers_are_those_of_the_text(family: str) -> None:
    model = build(family)
    decoder = find_decoder(model)
    assert len(decoder.layers) == model.config.get_text_config(decoder=True).num_hidden_layers
    embeddings = model.get_input_embeddings()
    assert any(module is embeddings for module in decoder.owner.modules())
    assert tower_stacks(model) == (TOWERS[family],)


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_the_runner_gives_the_states_in_front_of_the_head(family: str) -> None:
    model = build(family)
    name, module = runner(model, find_decoder(model).prefix)
    assert model.get_submodule(name) is module
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    seen: list[torch.Tensor] = []
    with head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        ids = torch.arange(2, 12)[None]
        model(input_ids=ids)
    assert torch.equal(module(input_ids=ids).last_hidden_state, seen[0])


def test_a_model_of_text_has_no_towers() -> None:
    assert tower_stacks(make_model("llama")) == ()


def test_a_model_that_reads_no_text_alone_is_refused() -> None:
    with torch.device("meta"):
        model: PreTrainedModel = BlipForConditionalGeneration(BlipConfig())
    with pytest.raises(NestQuantError, match="BlipForConditionalGeneration reads no text without pixel_values"):
        refuse_without_text(model, "nothing was done", "use another")
