"""A packed model saved again is a whole checkpoint: the same bits, verified, by itself or in shards."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.manifest import MANIFEST
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.integrations.transformers.config_entries import LOADER, auto_map
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.storage.files import read_json
from tests.families import load, make_model, pack, save_model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    """A packed model whose head is its embedding."""
    base = tmp_path_factory.mktemp("tied")
    save_model(make_model("qwen2"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed")


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("settings", [{}, {"max_shard_size": "15KB"}])
@pytest.mark.parametrize("form", ["packed", "int8"])
def test_a_saved_model_is_a_whole_checkpoint(tied: Path, tmp_path: Path, settings: dict[str, Any], form: str) -> None:
    model = load(tied)
    set_resident(model, form)
    for _ in range(2):  # also into a folder that has a checkpoint already
        model.save_pretrained(tmp_path, **settings)
        verify(tmp_path).refuse()
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) == 1 if not settings else len(shards) > 1
    assert (
        read_json(tmp_path / "config.json")["auto_map"] == auto_map(["AutoModelForCausalLM"])
        and (tmp_path / LOADER).is_file()
    )
    again = load_model(resolve(str(tmp_path)))
    assert same(again, load(tied))
    again.save_pretrained(tmp_path / "third", **settings)
    hashes = [
        {name: entry["sha256"] for name, entry in read_json(place / MANIFEST)["tensors"].items()}
        for place in (tmp_path, tmp_path / "third")
    ]
    assert hashes[0] == hashes[1]


def test_tied_embeddings_are_saved_once(tied: Path, tmp_path: Path) -> None:
    load(tied).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if "embed" in name or "lm_head" in name]  # noqa: SIM118
    assert names == ["model.embed_tokens.weight"]
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_class_is_still_that_of_the_architecture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load(tiny_checkpoint)
    assert isinstance(model, LlamaForCausalLM) and type(model).__name__ == "LlamaForCausalLM"
    twin = copy.deepcopy(model)
    twin.save_pretrained(tmp_path)
    verify(tmp_path).refuse()
    assert same(load(tmp_path), model)


def test_without_a_report_there_is_no_manifest_but_a_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load(tiny_checkpoint)
    model.hf_quantizer.report = None  # as of a model that was loaded by its Hub id
    model.save_pretrained(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    assert same(load(tmp_path), model)
