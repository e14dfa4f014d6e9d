"""No conversion of transformers touches the tensors of a packed checkpoint, and none is missed for the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.models.shards import read_tensors
from tests.converted import converted
from tests.families import load, pack, save_model


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in read_tensors(path).items()}


def assert_same(model: Any, stored: dict[str, Tensor]) -> None:
    tensors = model.state_dict()
    assert stored.keys() == tensors.keys() - set(model.all_tied_weights_keys)
    for name, tensor in stored.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("mixtral", {}),
        ("mixtral", {"weight_bits": 16, "act_bits": 16}),  # experts stay one tensor
        ("mixtral", {"weight_bits": 16, "kv_bits": 16}),  # experts are Linears with 16-bit weights
        ("granitemoe", {}),
        ("gpt_oss", {"kv_bits": 16}),
        ("deepseek_v3", {"kv_bits": 16}),
    ],
)
def test_loaded_and_saved_again_every_tensor_is_what_was_written(
    kind: str, settings: dict[str, Any], tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    save_model(converted(kind), tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(tmp_path / "model", tiny_text_file, tmp_path / "packed", samples=2, **settings)
    written = tensors_of(packed)
    model = load(packed)
    assert_same(model, written)
    model.save_pretrained(tmp_path / "again")
    saved = tensors_of(tmp_path / "again")
    assert saved.keys() == written.keys()
    assert_same(load(tmp_path / "again"), written)


def test_weights_that_are_read_on_demand_are_written(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as from a layer that is held whole, whether experts are quantized or stay in 16 bits."""
    save_model(converted("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    for number, settings in enumerate(({}, {"weight_bits": 16}, {"weight_bits": 16, "act_bits": 16})):
        found = []
        for budget in (2 << 30, 5000):
            monkeypatch.setattr("nestquant_cli.models.on_demand.EXPERTS", budget)
            folder = tmp_path / f"packed-{number}-{budget}"
            found.append(tensors_of(pack(tmp_path / "model", tiny_text_file, folder, samples=2, **settings)))
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
