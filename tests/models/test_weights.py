"""A model that is read layer by layer computes what the whole model computes, in every family."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import resolve
from nestquant_cli.models.weights import LazyWeights, Weights, open_weights
from nestquant_cli.pipeline.finish import other_tensors
from nestquant_cli.storage.files import read_json, write_json
from tests.converted import converted
from tests.families import CONFIGS, make_model, random_ids, save_model


@pytest.mark.parametrize("family", CONFIGS)
def test_held_parts_are_the_models_own(family: str, tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    folder = save_model(make_model(family).bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    whole = load_model(resolve(str(folder)))
    weights = open_weights(resolve(str(folder)), "cpu")
    assert isinstance(weights, LazyWeights)
    expected = whole.state_dict()
    for index in range(len(weights.decoder.layers)):
        with weights.layer(index), weights.layer(index):
            for name, tensor in weights.decoder.layers[index].state_dict().items():
                assert torch.equal(tensor, expected[f"{weights.decoder.layer_name(index)}.{name}"])
    assert all(parameter.is_meta for parameter in weights.model.parameters())
    for name, buffer in whole.named_buffers():
        assert torch.equal(weights.model.get_buffer(name), buffer), name
    rest = other_tensors(weights.model)
    assert rest.keys() == other_tensors(whole).keys()
    for name, tensor in rest.items():
        assert torch.equal(weights.fetch(name), expected[name]) and tensor.dtype == expected[name].dtype
    assert weights.model.generation_config.to_dict() == whole.generation_config.to_dict()


@pytest.mark.parametrize("family", CONFIGS)
def test_with_every_part_held_hidden_states_are_the_same(
    family: str, tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    folder = save_model(make_model(family).bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    base: Any = load_model(resolve(str(folder))).base_model
    weights = open_weights(resolve(str(folder)), "cpu")
    ids = random_ids(1, 24)
    held = [weights.around(), *(weights.layer(index) for index in range(len(weights.decoder.layers)))]
    with torch.no_grad():
        expected = base(input_ids=ids).last_hidden_state
        for part in held:
            part.__enter__()
        lazy: Any = weights.model.base_model
        assert torch.equal(lazy(input_ids=ids).last_hidden_state, expected)
        for part in held:
            part.__exit__(None, None, None)
    assert all(parameter.is_meta for parameter in weights.model.parameters())


def test_the_dtype_is_the_configs(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """As from_pretrained does it, also where the file has another one."""
    folder = save_model(make_model("llama").bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, folder / "model.safetensors")
    weights = open_weights(resolve(str(folder)), "cpu")
    assert weights.lazy and weights.fetch("model.norm.weight").dtype == torch.bfloat16


def test_a_tensor_in_two_forms_is_loaded_whole_and_said(
    tmp_path: Path, tiny_tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(converted("qwen3_moe"), tiny_tokenizer_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    joined = load_model(resolve(str(folder))).state_dict()
    name = "model.layers.0.mlp.experts.down_proj"
    save_file(tensors | {name: joined[name].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", "nestquant"), contextlib.suppress(NestQuantError):  # transformers may not take it
        assert not open_weights(resolve(str(folder)), "cpu").lazy
    assert any("is loaded whole" in line and "two forms" in line for line in caplog.messages)


def test_what_is_missing_is_said(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", "nestquant"), pytest.raises(NestQuantError, match="lack 1 tensors"):
        open_weights(resolve(str(folder)), "cpu")
    assert any("its files have no model.norm.weight" in line for line in caplog.messages)


def test_names_of_the_base_model_are_read_layer_by_layer(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path]
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    expected = load_model(resolve(str(folder))).state_dict()
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weights = open_weights(resolve(str(folder)), "cpu")
    assert weights.lazy
    for name in weights.model.state_dict():
        assert torch.equal(weights.fetch(name), expected[name]), name


def test_weights_that_are_not_finite_are_named(tmp_path: Path, make_model_folder: Callable[[Path, int], Path]) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    weights: list[Weights] = [open_weights(resolve(str(folder)), "cpu"), Weights(load_model(resolve(str(folder))))]
    for each in weights:
        each.refuse_unusable()
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][2, 3] = float("-inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for each in [open_weights(resolve(str(folder)), "cpu"), Weights(load_model(resolve(str(folder))))]:
        with pytest.raises(NestQuantError, match=rf"{name} has 1 NaN or infinite entries"):
            each.refuse_unusable()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("num_hidden_layers", 10**9, "more than 4096"), ("num_attention_heads", 0, "no usable model")],
)
def test_a_hostile_configuration_is_refused(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], name: str, value: int, told: str
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    write_json(folder / "config.json", read_json(folder / "config.json") | {name: value})
    with pytest.raises(NestQuantError, match=f"{told}|cannot be loaded"):
        open_weights(resolve(str(folder)), "cpu")


def test_a_head_that_differs_from_the_embeddings_it_is_tied_to_is_kept(
    tmp_path: Path, tiny_tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers keeps it; equal values stay tied, whatever their dtype."""
    folder = save_model(make_model("qwen2").bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].float()
    for change, kept in ((0.0, False), (1.0, True)):
        head[3, 5] += change
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
        with caplog.at_level("WARNING", "nestquant"):
            weights = open_weights(resolve(str(folder)), "cpu")
        whole = load_model(resolve(str(folder)))
        assert weights.lazy and ("lm_head.weight" in other_tensors(weights.model)) == kept
        assert weights.model.all_tied_weights_keys == whole.all_tied_weights_keys
        assert any("lm_head.weight differs from" in line for line in caplog.messages) == kept
        assert torch.equal(weights.fetch("lm_head.weight"), whole.state_dict()["lm_head.weight"])
    assert torch.equal(weights.fetch("lm_head.weight"), whole.state_dict()["lm_head.weight"])
    assert weights.fetch("lm_head.weight")[3, 5] != weights.fetch("model.embed_tokens.weight")[3, 5]


def test_a_tied_tensor_that_the_files_lack_is_that_it_is_tied_to(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """Blocks that share their parameters are held one by one, and the files have the first one's."""
    folder = save_model(make_model("qwen2").bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    weights = open_weights(resolve(str(folder)), "cpu")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert torch.equal(weights.fetch("lm_head.weight"), weights.fetch("model.embed_tokens.weight"))


def test_tensors_that_the_model_has_no_place_for_are_named(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_norm.weight"
    save_file(tensors | {name: torch.ones(16)}, folder / "model.safetensors", metadata={"format": "pt"})
    for opened in (lambda: open_weights(resolve(str(folder)), "cpu"), lambda: load_model(resolve(str(folder)))):
        caplog.clear()
        with caplog.at_level("WARNING", "nestquant"):
            opened()
        assert [line for line in caplog.messages if name in line]


def test_an_adapter_next_to_the_weights_is_refused(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path]
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(NestQuantError, match="has an adapter next to its weights"):
        open_weights(resolve(str(folder)), "cpu")
