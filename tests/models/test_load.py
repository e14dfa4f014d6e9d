"""Models that are not packed load, or are refused in one clear line that says why."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.load import load_unpacked_model
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.models.weights import open_weights
from nestquant_cli.storage.files import read_json, write_json


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_loads_in_eval_mode_with_its_tokenizer(tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    assert (source.kind, source.name, source.gguf_file) == ("folder", "tiny-llama", None)
    model = load_unpacked_model(source)
    assert not model.training and model.dtype == torch.float32
    assert load_unpacked_model(source, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(source).bos_token_id == 0


def test_models_that_do_not_decode_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import T5Config

    config = T5Config(num_layers=1, d_model=8, d_ff=8, num_heads=1, architectures=["T5ForConditionalGeneration"])
    config.save_pretrained(tmp_path / "t5")
    with pytest.raises(NestQuantError, match=r"t5 is an encoder-decoder \(model type t5\)"):
        load_unpacked_model(resolve(str(tmp_path / "t5")))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(NestQuantError, match="bert is an encoder"):
        resolve(str(tmp_path / "bert"))


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    edit_config(copy, model_type="nosuch", architectures=["NoSuchForCausalLM"])
    with pytest.raises(NestQuantError, match="does not recognize this architecture"):
        load_unpacked_model(resolve(str(copy)))


def test_truncated_weights_name_the_file(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(NestQuantError, match=r"model\.safetensors is truncated or damaged"):
        load_unpacked_model(resolve(str(copy)))


def test_a_missing_tensor_is_never_replaced_by_random_numbers(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NestQuantError, match=r"lack 1 tensors, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        load_unpacked_model(resolve(str(copy)))


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(NestQuantError, match="m cannot be loaded"):
        load_unpacked_model(resolve(str(tmp_path / "m.gguf")))


def test_pickles_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert (
        load_unpacked_model(resolve(str(copy))).dtype == torch.float32
    )  # what lies beside safetensors files is not looked at
    (copy / "model.safetensors").unlink()
    with pytest.raises(NestQuantError, match=r"only in \.bin files, which are pickles"):
        load_unpacked_model(resolve(str(copy)))


def test_an_unknown_dtype_is_refused_with_the_nearest(tiny_model_folder: Path) -> None:
    with pytest.raises(NestQuantError, match=r"no dtype 'flaot32'; .*did you mean .*'float32'"):
        load_unpacked_model(resolve(str(tiny_model_folder)), "flaot32")
    with pytest.raises(NestQuantError, match="no dtype 'tensor'"):
        load_unpacked_model(resolve(str(tiny_model_folder)), "tensor")


def test_of_two_files_with_the_same_tensors_none_is_chosen_in_silence(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, copy / "b.safetensors", {"format": "pt"})
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    for opening in (load_unpacked_model, lambda source: open_weights(source, "cpu")):
        with pytest.raises(NestQuantError, match=r"^a\.safetensors and b\.\w+ of .* both have \S+, and no index"):
            opening(resolve(str(copy)))
    write_json(copy / "config.json", read_json(copy / "config.json") | {"transformers_weights": "a.safetensors"})
    found = open_weights(resolve(str(copy)), "cpu").fetch("model.norm.weight")
    assert torch.equal(found, tensors["model.norm.weight"])
