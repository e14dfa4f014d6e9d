"""The pipeline's promises: reproducible, resumable, the same with a stored calibration, and exact after reloading."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nestquant_cli.calibration.store import CalibrationWriter
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.errors import NestQuantError
from nestquant_cli.files import read_json, sha256_file, write_json
from nestquant_cli.models.source import load_model, resolve
from nestquant_cli.modules.attach import attach, quantized_linears
from nestquant_cli.quantization.pipeline import calibrate
from nestquant_cli.quantization.recipe import Recipe
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model

TIMED = {"quantization_report.json", "nestquant_manifest.json"}  # hold seconds, and the hash of a file that does
IDS = random_ids(2, 24)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    """W4A4KV4 of the tiny Llama, undisturbed."""
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("pipeline") / "packed")


def hashes(folder: Path) -> dict[str, str]:
    """Of every file whose bytes are determined by the command."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    again = pack(tiny_model_folder, tiny_text_file, tmp_path / "again")
    assert hashes(again) == hashes(packed)
    other = tensors(pack(tiny_model_folder, tiny_text_file, tmp_path / "other", seed=1))
    expected = tensors(packed)
    assert other.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(other[name], tensor) == (not name.endswith((".words", ".row_scale"))), name


def test_a_stored_calibration_gives_the_same_words(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    recipe = Recipe(dataset=str(tiny_text_file), samples=4, seqlen=64)
    about = calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / "calibration", "cpu")
    assert about["samples"] == 4 and about["seqlen"] == 64
    found = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", calibration=tmp_path / "calibration")
    assert hashes(found) == hashes(packed)
    weights = pack(
        tiny_model_folder,
        tiny_text_file,
        tmp_path / "w3",
        calibration=tmp_path / "calibration",
        weight_bits=3,
        act_bits=16,
        kv_bits=16,
    )
    assert read_layout(weights).cache == []
    for settings, told in (
        ({"seed": 1}, "was calibrated with seed 0, not 1"),
        ({"act_bits": 3}, "was calibrated with act_code"),
        ({"seqlen": 32, "explicit": ["seqlen"]}, "was calibrated with seqlen 64, not 32"),
        ({"dataset": "other.txt", "explicit": ["dataset"]}, "was calibrated with dataset"),
    ):
        with pytest.raises(NestQuantError, match=told):
            pack(tiny_model_folder, tiny_text_file, tmp_path / "no", calibration=tmp_path / "calibration", **settings)
    assert not (tmp_path / "no").exists()


def test_a_damaged_layer_of_a_calibration_leaves_nothing_behind(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    recipe = Recipe(dataset=str(tiny_text_file), samples=4, seqlen=64)
    calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / "calibration", "cpu")
    with open(tmp_path / "calibration" / "layer-00000.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(NestQuantError, match="altered or truncated"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "no", calibration=tmp_path / "calibration")
    assert not (tmp_path / "no").exists()


class Interrupted(BaseException):
    """As a Ctrl-C or a kill would be."""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    packed: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    write, written = Output.write, []

    def interrupted(self: Output, number: int, *arguments: Any) -> None:
        if number == at:
            raise Interrupted
        write(self, number, *arguments)

    def counted(self: Output, number: int, *arguments: Any) -> None:
        written.append(number)
        write(self, number, *arguments)

    monkeypatch.setattr(Output, "write", interrupted)
    with pytest.raises(Interrupted):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    monkeypatch.setattr(Output, "write", counted)
    with pytest.raises(NestQuantError, match=r"unfinished run with recipe\.weight_bits 4\.0 instead of 3"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", weight_bits=3)
    pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    assert written == list(range(at, 3))
    assert hashes(tmp_path / "packed") == hashes(packed)


def test_without_resume_an_unfinished_run_is_started_over(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Output.finish
    monkeypatch.setattr(Output, "finish", lambda *_: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", seed=1)
    monkeypatch.setattr(Output, "finish", finish)
    pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", resume=False)
    assert hashes(tmp_path / "packed") == hashes(packed)


def test_an_interrupted_calibration_leaves_nothing_behind(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = CalibrationWriter.add

    def interrupted(self: CalibrationWriter, layer: Any) -> None:
        add(self, layer)
        raise Interrupted

    monkeypatch.setattr(CalibrationWriter, "add", interrupted)
    with pytest.raises(Interrupted):
        calibrate(
            resolve(str(tiny_model_folder)),
            Recipe(dataset=str(tiny_text_file), samples=2, seqlen=16),
            tmp_path / "calibration",
            "cpu",
        )
    assert not (tmp_path / "calibration").exists()


def test_logits_after_reloading_in_a_fresh_process_equal_those_before_saving(
    packed: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    model: Any = load_model(resolve(str(tiny_model_folder)))
    attach(model, read_layout(packed))
    model.load_state_dict(tensors(packed), strict=False)
    torch.save(IDS, tmp_path / "ids.pt")
    program = (
        "import sys, torch, nestquant_cli\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(packed)!r})\n"
        f"ids = torch.load({str(tmp_path / 'ids.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    torch.save(model(input_ids=ids).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model, IDS))


@pytest.mark.parametrize(
    ("bits", "linears", "coded", "cached"),
    [((4, 16, 16), 14, False, False), ((16, 4, 16), 14, True, False), ((16, 16, 4), 0, False, True)],
    ids=["weights", "activations", "cache"],
)
def test_one_part_alone(
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    bits: tuple[int, int, int],
    linears: int,
    coded: bool,
    cached: bool,
) -> None:
    settings = dict(zip(("weight_bits", "act_bits", "kv_bits"), bits, strict=True))
    folder = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **settings)
    model, original = load(folder), load(tiny_model_folder)
    modules = quantized_linears(model)
    assert len(modules) == linears
    assert all((module.source.code is not None) == coded for module in modules.values())
    assert all(("words" in dict(module.named_buffers())) == (bits[0] < 16) for module in modules.values())
    layout = read_layout(folder)
    assert bool(layout.cache) == cached
    error = relative_error(logits(model, IDS), logits(original, IDS))
    assert 0 < error < 0.9
    cache = model(IDS, use_cache=True).past_key_values
    assert (type(cache).__name__ == "PackedCache") == cached


def test_the_report_says_what_was_done(packed: Path, tiny_text_file: Path) -> None:
    report = read_json(packed / "quantization_report.json")
    assert len(report["matrices"]) == 14
    assert report["recipe"]["dataset"] == str(tiny_text_file) and report["recipe"]["tokens_sha256"]
    assert report["bits"] == {"weight": 4.0, "act": 4.0, "kv": 4.0}
    assert report["peak_memory_bytes"] > 0 and report["versions"]["torch"] == torch.__version__
    assert not (packed / ".nestquant").exists()


def edited(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The model in `folder` with changed weights."""
    values = load_file(folder / "model.safetensors")
    change(values)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_not_a_number_is_named(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], tiny_text_file: Path, name: str
) -> None:
    folder = edited(
        make_model_folder(tmp_path / "model", 0), lambda values: values[name].view(-1)[3].fill_(float("nan"))
    )
    with pytest.raises(NestQuantError, match=f"{name} has 1 NaN or infinite entries"):
        pack(folder, tiny_text_file, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_packed_checkpoint_is_refused(packed: Path, tmp_path: Path, tiny_text_file: Path) -> None:
    with pytest.raises(NestQuantError, match="is a packed checkpoint already"):
        pack(packed, tiny_text_file, tmp_path / "twice")


def test_a_linear_that_is_never_called_stays_as_it_is(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    create = LlamaDecoderLayer.__init__

    def with_idle(self: Any, *arguments: Any, **settings: Any) -> None:
        create(self, *arguments, **settings)
        self.idle = nn.Linear(64, 8)

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", with_idle)
    folder = save_model(make_model("llama"), tiny_tokenizer_folder, tmp_path / "model")
    model = load(pack(folder, tiny_text_file, tmp_path / "packed"))
    assert torch.equal(model.model.layers[1].idle.weight, load(folder).model.layers[1].idle.weight)
    assert len(quantized_linears(model)) == 14


def test_widths_that_blocks_do_not_divide_are_padded(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    from transformers import LlamaConfig

    from tests.families import from_config

    sizes = {"hidden_size": 60, "intermediate_size": 100, "num_attention_heads": 5, "num_hidden_layers": 1}
    original = from_config(LlamaConfig(vocab_size=300, **sizes))
    folder = save_model(original, tiny_tokenizer_folder, tmp_path / "model")
    model = load(pack(folder, tiny_text_file, tmp_path / "packed", weight_bits=6, act_bits=6, kv_bits=16))
    assert relative_error(logits(model, IDS), logits(original, IDS)) < 0.1
    with pytest.raises(NestQuantError, match="head size 12 is not a multiple of 8"):
        pack(folder, tiny_text_file, tmp_path / "kv")
    assert not (tmp_path / "kv").exists()


def test_generation_settings_that_transformers_would_not_save_are_kept(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], tiny_text_file: Path
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    write_json(folder / "generation_config.json", {"do_sample": False, "temperature": 0.5, "eos_token_id": 1})
    saved = read_json(pack(folder, tiny_text_file, tmp_path / "packed") / "generation_config.json")
    assert saved["temperature"] == 0.5 and saved["eos_token_id"] == 1
