"""A folder that holds no language model is refused for what it is, with a remedy that helps."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig, T5Config, ViTConfig, Wav2Vec2Config

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.load import load_unpacked_model
from nestquant_cli.models.size_limits import describing
from nestquant_cli.models.source import load_config, resolve
from nestquant_cli.models.weights import open_weights
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = "; no model was loaded; use a language model that generates text"
KNOWN = "; no model was loaded; use a decoder-only language model that this version of transformers knows, or update"
# config.json of what people mistake for a language model, and what is said of it.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": (
        BertConfig(**TINY, architectures=["BertForMaskedLM"]).to_dict(),
        "is an encoder (masked language model) (model type bert); it was refused; give a decoder-only language model",
    ),
    "encoder-decoder": (
        T5Config(d_model=16, num_layers=1, architectures=["T5ForConditionalGeneration"]).to_dict(),
        "is an encoder-decoder (model type t5); it was refused; give a decoder-only language model",
    ),
    "classifier": (
        LlamaConfig(**TINY, architectures=["LlamaForSequenceClassification"]).to_dict(),
        f"config.json says that the model is a LlamaForSequenceClassification, which generates no text{TEXT}",
    ),
    "images": (
        ViTConfig(**TINY, architectures=["ViTForImageClassification"]).to_dict(),
        f"config.json says that the model is a ViTForImageClassification, which generates no text{TEXT}",
    ),
    "speech": (
        Wav2Vec2Config(**TINY, architectures=["Wav2Vec2ForCTC"]).to_dict(),
        f"config.json says that the model is a Wav2Vec2ForCTC, which generates no text{TEXT}",
    ),
    "no class": (
        ViTConfig(**TINY).to_dict(),
        f"transformers has no model that generates text for the configuration of vit{KNOWN}",
    ),
    "a newer transformers": ({"model_type": "llama9", "architectures": ["Llama9ForCausalLM"]}, KNOWN),
}


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """A folder with these files, JSON each."""

    def make(**files: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_no_language_model_is_refused_by_what_it_is(kind: str, folder_of: Callable[..., Path]) -> None:
    config, told = CONFIGS[kind]
    folder = str(folder_of(config=config))
    for refusing in (
        lambda: make_plan(resolve(folder), Recipe()),
        lambda: load_unpacked_model(resolve(folder)),
        lambda: open_weights(resolve(folder), "cpu"),
    ):
        with pytest.raises(NestQuantError) as error:
            refusing()
        if "safetensors" not in str(error.value):  # who reads files first finds none
            assert told in str(error.value)


def test_a_folder_without_config_is_refused_by_what_it_holds(folder_of: Callable[..., Path]) -> None:
    folder = folder_of(model_index={"_class_name": "StableDiffusionPipeline"})
    with pytest.raises(NestQuantError, match=r"is a pipeline of several models.*give the folder of a language model"):
        resolve(str(folder))
    (folder / "model_index.json").rename(folder / "adapter_config.json")
    with pytest.raises(NestQuantError, match=r"has only an adapter .*merge_and_unload\(\) of peft"):
        resolve(str(folder))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(NestQuantError, match=r"needs a package .*timm.*; install the package it names"), describing():
        raise ImportError("\nTimmWrapperModel requires the timm library but it was not found.\nMore.")


def test_a_base_model_lacks_its_output_head(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    for opening in (load_unpacked_model, lambda source: open_weights(source, "cpu")):
        with pytest.raises(NestQuantError, match=r"first is lm_head\.weight; .* this one is a LlamaModel, without"):
            opening(resolve(str(folder)))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NestQuantError, match="download or copy the model again"):
        load_unpacked_model(resolve(str(folder)))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    save_file(tensors | {"lm_head.weight": torch.zeros(300, 64)}, folder / "model.safetensors", {"format": "pt"})
    assert type(load_unpacked_model(resolve(str(folder)))).__name__ == "LlamaForCausalLM"  # a head makes it one


def test_code_that_is_not_used_is_mentioned_once(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "with-code"))
    config = json.loads((folder / "config.json").read_text())
    entries = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": entries}))
    with caplog.at_level(logging.INFO, "nestquant"):
        for _ in range(2):
            load_config(resolve(str(folder)))
    lines = [record.message for record in caplog.records if "code" in record.message]
    assert lines == ["the code that comes with with-code is not used: transformers has the model type llama"]
