"""Tensors read one by one are those of from_pretrained, whatever transformers makes of the files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models import shards, tensor_reader
from nestquant_cli.models.conversions import origins
from nestquant_cli.models.source import resolve
from nestquant_cli.models.weights import LazyWeights, Weights, open_weights
from tests.converted import CONVERTED, converted
from tests.families import save_model


@pytest.fixture
def folder(kind: str, tmp_path: Path, tiny_tokenizer_folder: Path) -> Path:
    return save_model(converted(kind), tiny_tokenizer_folder, tmp_path / "model")


@pytest.mark.parametrize("kind", CONVERTED)
def test_every_tensor_is_that_of_from_pretrained(kind: str, folder: Path) -> None:
    source = resolve(str(folder))
    weights, whole = open_weights(source, "cpu"), Weights(load_model(source))
    assert isinstance(weights, LazyWeights)
    expected = whole.model.state_dict()
    assert weights.model.state_dict().keys() == expected.keys()
    for name, tensor in expected.items():
        if name in weights.model.all_tied_weights_keys:
            continue
        read = weights.fetch(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor) and read.is_contiguous(), name
        assert torch.equal(whole.fetch(name), tensor)
    for name, buffer in whole.model.named_buffers():
        assert torch.equal(weights.model.get_buffer(name), buffer), name


@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v3", "ernie4_5_moe"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_are_those_of_from_pretrained(kind: str, folder: Path, dtype: str) -> None:
    source = resolve(str(folder))
    weights, whole = open_weights(source, "cpu", dtype), Weights(load_model(source, dtype))
    tied = weights.model.all_tied_weights_keys
    for name, tensor in whole.model.state_dict().items():
        read = tensor if name in tied else weights.fetch(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3", "granitemoe", "gpt_oss", "llama4"])
def test_one_expert_costs_one_expert(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_weights(resolve(str(folder)), "cpu")
    read: list[int] = []

    def counted(function: Any) -> Any:
        def call(*place: Any) -> Any:
            tensor = function(*place)
            read.append(tensor.numel())
            return tensor

        return call

    monkeypatch.setattr(tensor_reader, "read_tensor", counted(shards.read_tensor))
    monkeypatch.setattr(tensor_reader, "read_part", counted(shards.read_part))
    names = [name for name in weights.model.state_dict() if ".experts." in name and name.endswith(".expert_1.weight")]
    assert names
    for name in names:
        read.clear()
        assert weights.fetch(name).numel() == sum(read)


@pytest.mark.parametrize("kind", ["mixtral"])
def test_experts_that_are_made_at_once_are_read_once(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestquant_cli.models.conversions.Conversion.by_expert", lambda *_: False)
    source = resolve(str(folder))
    weights, expected = open_weights(source, "cpu"), Weights(load_model(source)).model.state_dict()
    read: list[int] = []

    def counted(*place: Any) -> Any:
        read.append(1)
        return shards.read_tensor(*place)

    monkeypatch.setattr(tensor_reader, "read_tensor", counted)
    for _ in range(2):
        assert all(torch.equal(weights.fetch(name), tensor) for name, tensor in expected.items())
    assert len(read) == 2 * len(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("kind", ["mixtral"])
def test_an_expert_that_is_missing_is_no_origin(kind: str, folder: Path) -> None:
    """The model's tensor has another shape then, which the whole model would be refused for, too."""
    tensors = load_file(folder / "model.safetensors")
    lost = [name for name in tensors if "layers.0" in name and ".3." in name]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in lost}
    model = converted(kind)
    found, unused = origins(model, shapes)
    assert not unused and len(lost) == 3
    assert found["model.layers.0.mlp.experts.down_proj"].shape[0] == 3
    save_file({name: tensors[name] for name in shapes}, folder / "model.safetensors", metadata={"format": "pt"})
    reader = tensor_reader.TensorReader(model, {})
    assert reader.misfit(model) == "its files have no model.embed_tokens.weight"
