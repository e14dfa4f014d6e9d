"""Exports of tiny checkpoints by the real command line, loaded by transformers and compressed-tensors."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, dynamic_module_utils

from nestquant_cli.checkpoint.manifest import MANIFEST, file_problem
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.modules.attach import quantized_linears
from tests.expert_models import CONFIGS
from tests.families import (
    Outcome,
    error_line,
    from_config,
    in_process,
    load,
    logits,
    pack,
    random_ids,
    relative_error,
    save_model,
)

IDS = random_ids(2, 24)
# 64 and 128 are Hadamard orders of the format; 536 = 8·67 is not
WIDE = LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=536,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.1,
    tie_word_embeddings=True,
)

GPT2 = GPT2Config(vocab_size=300, n_layer=1, n_embd=64, n_head=4)


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of an export is copied into a cache before it runs; that is to be this test's."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def checkpoint(tiny_model_folder: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "w4"
    return pack(tiny_model_folder, tiny_text_file, folder, weight_bits=4, act_bits=16, kv_bits=16)


def same_integers(packed: Any, exported: Any) -> None:
    found = {name: each for name, each in exported.named_modules() if hasattr(each, "weight_packed")}
    expected = quantized_linears(packed)
    assert found.keys() == expected.keys()
    for name, module in expected.items():
        bits, shape = found[name].quantization_scheme.weights.num_bits, torch.Size(found[name].weight_shape.tolist())
        V = unpack_from_int32(found[name].weight_packed, bits, shape)
        assert torch.equal(V, module.decoded()[:, : module.in_features])
        scale = module.row_scale.view(torch.bfloat16).float()
        assert torch.equal(found[name].weight_scale.float().view_as(scale), scale)


@pytest.mark.parametrize("kind", ["one transform", "two transforms"])
def test_the_same_integers_and_the_same_logits(
    nestquant: Callable[..., Outcome],
    checkpoint: Path,
    tiny_tokenizer_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    if kind == "two transforms":
        model = save_model(from_config(WIDE), tiny_tokenizer_folder, tmp_path / "wide")
        checkpoint = pack(model, tiny_text_file, tmp_path / "packed", weight_bits=4, act_bits=16, kv_bits=16)
    code, out, _ = nestquant("export", checkpoint, "--format", "compressed-tensors", "--output", tmp_path / "export")
    assert code == 0 and "14 matrices of 8-bit integers" in out and "trust_remote_code=True" in out and "vLLM" in out
    packed = load(checkpoint, dtype=torch.float32)
    exported = load(tmp_path / "export", dtype=torch.float32, trust_remote_code=True)
    same_integers(packed, exported)
    assert relative_error(logits(exported, IDS), logits(packed, IDS)) < 1e-5
    manifest = json.loads((tmp_path / "export" / MANIFEST).read_text())
    assert all(file_problem(tmp_path / "export", name, entry) is None for name, entry in manifest["files"].items())
    assert "modeling_export.py" in manifest["files"] and "tokenizer.json" in manifest["files"]


def test_transformers_alone_does_not_apply_the_transforms(
    nestquant: Callable[..., Outcome], checkpoint: Path, tmp_path: Path
) -> None:
    assert nestquant("export", checkpoint, "--output", tmp_path / "export")[0] == 0
    apart = relative_error(logits(load(tmp_path / "export"), IDS), logits(load(checkpoint), IDS))
    assert apart > 0.3, "docs/export.md says that they are not applied without trust_remote_code"


def test_an_interrupted_export_goes_on_to_the_same_bytes(
    nestquant: Callable[..., Outcome], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nestquant("export", checkpoint, "--output", tmp_path / "whole")[0] == 0
    written, write = [], Output.write

    def failing(self: Output, number: int, *rest: Any) -> None:
        if number == 2:
            raise OSError(28, "No space left on device")
        written.append(number)
        write(self, number, *rest)

    monkeypatch.setattr(Output, "write", failing)
    code, _, error = nestquant("export", checkpoint, "--output", tmp_path / "begun")
    assert code == 2 and "no space left" in error_line(error) and not (tmp_path / "begun" / "config.json").exists()
    monkeypatch.setattr(
        Output, "write", lambda self, number, *rest: (written.append(number), write(self, number, *rest))
    )
    assert nestquant("export", checkpoint, "--output", tmp_path / "begun")[0] == 0
    assert written == [0, 1, 2, 3]
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "begun").iterdir()}


def test_integers_in_groups_keep_their_bits(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    settings = {"method": "integer", "rotation": "none", "weight_code": {"group": 32}, "act_bits": 16, "kv_bits": 16}
    checkpoint = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **settings)
    code, out, _ = nestquant("export", checkpoint, "--output", tmp_path / "export")
    assert code == 0 and "14 matrices of 4-bit integers" in out and "trust_remote_code" not in out and "vLLM" not in out
    packed, exported = load(checkpoint, dtype=torch.float32), load(tmp_path / "export", dtype=torch.float32)
    same_integers(packed, exported)
    assert relative_error(logits(exported, IDS), logits(packed, IDS)) < 1e-5


def test_what_stays_in_16_bits_is_said(nestquant: Callable[..., Outcome], talking_packed: Path, tmp_path: Path) -> None:
    code, out, _ = nestquant("export", talking_packed, "--output", tmp_path / "export")
    assert code == 0 and "activations and keys and values stay in 16 bits in the export" in out


def test_bad_input_is_told_in_one_line(
    nestquant: Callable[..., Outcome], checkpoint: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    for words, told in (
        (("export", tiny_model_folder), "is not a packed checkpoint"),
        (("export", checkpoint, "--output", checkpoint), "is not empty"),
    ):
        code, _, error = nestquant(*words)
        assert code == 2 and told in error_line(error)
    learned = pack(tiny_model_folder, tiny_text_file, tmp_path / "learned", rotation="learned", reflections=2)
    code, _, error = nestquant("export", learned, "--output", tmp_path / "no")
    assert code == 2 and "learned" in error_line(error) and not (tmp_path / "no").exists()
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    shard = damaged / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    code, _, error = nestquant("export", damaged, "--output", tmp_path / "no")
    assert code == 2 and "altered" in error_line(error) and not (tmp_path / "no").exists()


def test_the_commands_refuse_an_export_whose_code_they_would_not_run(
    nestquant: Callable[..., Outcome], checkpoint: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    assert nestquant("export", checkpoint, "--output", tmp_path / "export")[0] == 0
    code, _, error = nestquant("eval-ppl", tmp_path / "export", "--dataset", tiny_text_file, "--seqlen", 64)
    assert code == 2 and "give the packed checkpoint" in error_line(error)


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "check_export.py"
    spec = importlib.util.spec_from_file_location("check_export", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_compares_without_an_import_of_ours(
    script: ModuleType,
    nestquant: Callable[..., Outcome],
    checkpoint: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert nestquant("export", checkpoint, "--output", tmp_path / "export")[0] == 0
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "others"))
    words = [checkpoint, tmp_path / "export", "--dataset", tiny_text_file, "--seqlen", 64, "--windows", 2]
    monkeypatch.setattr(sys, "argv", ["check_export.py", *map(str, words), "--dtype", "float32"])
    assert script.main() == 0
    assert "14, integers and scales equal to the bit" in capfd.readouterr().out


@pytest.mark.parametrize("config", [CONFIGS["mixtral"](), GPT2], ids=["experts", "conv1d"])
def test_matrices_that_the_format_does_not_know_are_refused(
    nestquant: Callable[..., Outcome],
    config: PretrainedConfig,
    tiny_tokenizer_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
) -> None:
    model = save_model(from_config(config), tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(model, tiny_text_file, tmp_path / "packed", act_bits=16, kv_bits=16)
    code, _, error = nestquant("export", packed, "--output", tmp_path / "export")
    assert code == 2 and "is no nn.Linear of" in error_line(error)
    assert not (tmp_path / "export").exists()
    assert torch.isfinite(logits(load(packed), IDS)).all()  # the remedy
