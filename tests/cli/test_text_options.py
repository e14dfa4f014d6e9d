"""What commands read and what windows begin with: --bos, --text-field, --dtype, and tokens that a model lacks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.storage.files import read_json
from tests.conftest import TEMPLATE
from tests.families import Outcome, error_line, in_process, make_model, pack, save_model

BOS = 0
WINDOWS: list[object] = ["--samples", 3, "--seqlen", 48]


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, bos_tokenizer_folder: Path) -> Path:
    """The tiny model with a tokenizer that adds BOS by itself."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("bos") / "model"))
    shutil.copytree(bos_tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


def recipe_of(folder: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = read_json(folder / "config.json")["quantization_config"]["recipe"]
    return recipe


def test_windows_begin_with_bos_and_the_record_says_so(
    nestquant: Callable[..., Outcome], with_bos: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    text = ["--dataset", tiny_text_file, *WINDOWS, "--weight-bits", 4]
    hashes = {}
    for bos, start in (("default", [BOS]), ("each", [BOS]), ("none", [])):
        assert nestquant("quantize", with_bos, *text, "--bos", bos, "--output", tmp_path / bos)[0] == 0
        recipe = recipe_of(tmp_path / bos)
        assert (recipe["bos"], recipe["window_start"]) == (bos, start)
        assert read_json(tmp_path / bos / "quantization_report.json")["recipe"]["bos"] == bos
        hashes[bos] = recipe["tokens_sha256"]
    assert hashes["default"] == hashes["each"] != hashes["none"]

    folder = tmp_path / "calibration"
    asked = ["--act-bits", 16, "--kv-bits", 16]
    assert nestquant("calibrate", with_bos, *text[:-2], *asked, "--bos", "none", "--output", folder)[0] == 0
    use = ["--calibration", folder, "--weight-bits", 4]
    code, _, error = nestquant("quantize", with_bos, *use, "--bos", "each", "--output", tmp_path / "no")
    assert code == 2 and "was calibrated with bos none, not each" in error_line(error)
    assert nestquant("quantize", with_bos, *use, "--output", tmp_path / "stored")[0] == 0
    assert recipe_of(tmp_path / "stored")["bos"] == "none"


def test_another_bos_does_not_continue_a_run(
    nestquant: Callable[..., Outcome],
    with_bos: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pack(with_bos, tiny_text_file, tmp_path / "packed")
    commands: dict[str, list[object]] = {
        "quantize": ["quantize", with_bos, *WINDOWS],
        "calibrate": ["calibrate", with_bos, *WINDOWS],
        "tune": ["tune", packed, "--model", with_bos, "--seqlen", 32, "--steps", 2, "--checks", 1],
    }

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name, command in commands.items():
        command += ["--dataset", tiny_text_file, "--output", tmp_path / name]
        with monkeypatch.context() as patch:
            for place in ("calibration.store_writer.CalibrationWriter.finish", "pipeline.quantize.write_rest"):
                patch.setattr(f"nestquant_cli.{place}", dying)
            patch.setattr("nestquant_cli.tuning.tune.descend", dying)
            assert nestquant(*command, "--bos", "each")[0] == 130
        code, _, error = nestquant(*command, "--bos", "none")
        assert code == 2, name
        assert "bos each instead of none" in error_line(error), name


def test_conversations_and_other_fields_are_read(
    nestquant: Callable[..., Outcome], talking: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    texts = tiny_text_file.read_text(encoding="utf-8").split("\n\n")
    talk = [[{"role": "user", "content": each}, {"role": "assistant", "content": "so it is"}] for each in texts]
    file = tmp_path / "talk.jsonl"
    rows = [{"messages": messages, "body": each} for messages, each in zip(talk, texts, strict=True)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for field, named, template in ((None, "messages", True), ("body", "body", False)):
        given = [] if field is None else ["--text-field", field]
        output = tmp_path / named
        command = ["quantize", talking, "--dataset", file, *WINDOWS, "--weight-bits", 4, *given, "--output", output]
        assert nestquant(*command)[0] == 0
        recipe = recipe_of(output)
        assert recipe["text_field"] == named and (recipe["chat_template_sha256"] is not None) == template
        result = output.with_suffix(".json")
        scoring = ["--seqlen", 48, "--max-windows", 2, *given, "--output", result]
        assert nestquant("eval-ppl", output, "--dataset", file, *scoring)[0] == 0
        protocol = read_json(result)["protocol"]
        assert (protocol["text_field"], protocol["text_sha256"]) == (named, recipe["text_sha256"])
        assert protocol["join"] == ("" if template else "\n\n")
    code, _, error = nestquant(
        "quantize", talking, "--dataset", file, *WINDOWS, "--text-field", "no", "--output", tmp_path / "no"
    )
    assert code == 2 and "line 1 has no string in the field 'no'" in error_line(error)
    assert not (tmp_path / "no").exists()


def test_a_wider_dtype_is_taken_and_recorded(
    nestquant: Callable[..., Outcome], tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = save_model(make_model("llama").half(), tiny_tokenizer_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] *= 1000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    command = ["quantize", folder, "--dataset", tiny_text_file, *WINDOWS, "--weight-bits", 4]
    code, _, error = nestquant(*command, "--output", tmp_path / "half")
    assert code == 2 and "NaN or infinite values" in error_line(error) and "--dtype float32" in error_line(error)
    assert nestquant(*command, "--dtype", "float32", "--output", tmp_path / "wide")[0] == 0
    assert recipe_of(tmp_path / "wide")["dtype"] == "float32"
    kept = load_file(sorted((tmp_path / "wide").glob("*.safetensors"))[-1])
    assert all(tensor.dtype == torch.float32 for tensor in kept.values())
    assert verify(tmp_path / "wide", str(folder)).problems == []
    code, _, error = nestquant("calibrate", folder, *command[2:-2], "--output", tmp_path / "no")
    assert code == 2 and not (tmp_path / "no").exists()
    assert nestquant("calibrate", folder, *command[2:-2], "--dtype", "float32", "--output", tmp_path / "c")[0] == 0
    assert read_json(tmp_path / "c" / "calibration.json")["dtype"] == "float32"


def test_tokens_that_the_model_does_not_know_are_refused_before_anything_is_written(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    packed = pack(folder, tiny_text_file, tmp_path / "packed")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["lattice"])
    tokenizer.chat_template = TEMPLATE
    for each in (folder, packed):
        tokenizer.save_pretrained(each)
    (tmp_path / "w.yaml").write_text("weight_bits: 4\nact_bits: 16\nkv_bits: 16\n")
    text: list[object] = ["--dataset", tiny_text_file]
    output = ["--output", tmp_path / "out"]
    scored = ["--eval-dataset", tiny_text_file, "--seqlen", 48]
    for command in (
        ["calibrate", folder, *text, *WINDOWS, *output],
        ["quantize", folder, *text, *WINDOWS, *output],
        ["tune", packed, "--model", folder, *text, "--seqlen", 32, *output],
        ["compare", folder, "--recipes", tmp_path / "w.yaml", *text, "--samples", 3, *scored, *output],
        ["eval-ppl", folder, *text, "--seqlen", 48],
        ["generate", folder, "the lattice"],
    ):
        code, _, error = nestquant(*command)
        assert code == 2 and "the tokenizer makes token 300, the model knows 300 tokens" in error_line(error), command[
            0
        ]
        left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert left == [], command[0]
