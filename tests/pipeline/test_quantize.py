"""The pipeline's promises: reproducible, resumable, the same with a stored calibration, and exact after reloading."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.store_writer import CalibrationWriter
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.shard_writer import write_shard
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.attach import attach
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, sha256_file
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model

IDS = random_ids(2, 24)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    """W4A4KV4 of the tiny Llama, undisturbed."""
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("pipeline") / "packed")


def hashes(folder: Path) -> dict[str, str]:
    """Of every file."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


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


def test_any_number_of_threads_gives_the_same_bytes(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert hashes(pack(tiny_model_folder, tiny_text_file, tmp_path / str(threads))) == hashes(packed)
    finally:
        torch.set_num_threads(before)


def test_spilled_hidden_states_give_the_same_bytes(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    assert hashes(pack(tiny_model_folder, tiny_text_file, tmp_path / "spilled", budget=0)) == hashes(packed)


def test_a_model_that_is_loaded_whole_gives_the_same_bytes(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestquant_cli.models.weights._open_lazily", lambda *_: ("a test", None))
    assert hashes(pack(tiny_model_folder, tiny_text_file, tmp_path / "whole")) == hashes(packed)


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


def test_a_full_disk_is_one_line_and_leaves_a_state_to_go_on_from(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        if "00002-of" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write_shard(path, *_)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("nestquant_cli.checkpoint.output.write_shard", full)
        with pytest.raises(NestQuantError, match=r"00002-of-00003\.safetensors cannot be written .No space left"):
            pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "INCOMPLETE",
        "model-00001-of-00003.safetensors",
    ]
    pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    assert hashes(tmp_path / "packed") == hashes(packed)


def test_a_tokenizer_that_cannot_be_saved_is_one_line(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library raises it

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(NestQuantError, match=r"cannot be written \(No space left on device"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")


def test_room_is_looked_for_before_the_start(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NestQuantError, match=r"the checkpoint takes [\d,]+ bytes and .* has 1,000 free"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_an_interrupted_calibration_goes_on_to_the_same_bytes(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = CalibrationWriter.write, []

    def interrupted(self: CalibrationWriter, index: int, *others: Any) -> None:
        write(self, index, *others)
        written.append(index)
        if len(written) == 1:
            raise Interrupted

    def run(name: str) -> None:
        recipe = Recipe(dataset=str(tiny_text_file), samples=2, seqlen=16)
        calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / name, "cpu")

    monkeypatch.setattr(CalibrationWriter, "write", interrupted)
    with pytest.raises(Interrupted):
        run("first")
    run("first")
    assert written == [0, 1]
    run("second")
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


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


def edited(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
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


def test_a_head_of_its_own_behind_a_tied_configuration_is_written_and_verified(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    original = save_model(make_model("qwen2"), tiny_tokenizer_folder, tmp_path / "model")
    stored = load_file(original / "model.safetensors")
    head = torch.randn_like(stored["model.embed_tokens.weight"])
    save_file(stored | {"lm_head.weight": head}, original / "model.safetensors", metadata={"format": "pt"})
    found = pack(original, tiny_text_file, tmp_path / "packed", weight_bits=8, act_bits=16, kv_bits=16)
    assert read_json(found / "config.json")["tie_word_embeddings"] is False
    assert torch.equal(tensors(found)["lm_head.weight"], head)
    assert relative_error(logits(load(found), IDS), logits(load(original), IDS)) < 0.05
    assert verify(found, str(original)).problems == []

    tied = save_model(make_model("qwen2"), tiny_tokenizer_folder, tmp_path / "tied")
    without = pack(tied, tiny_text_file, tmp_path / "without", weight_bits=8, act_bits=16, kv_bits=16)
    told = [str(problem) for problem in verify(without, str(original)).problems]
    assert any("lm_head.weight: the original model has this tensor" in line for line in told)
