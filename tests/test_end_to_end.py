"""The commands as a user runs them, one after the other, on a tiny model: some as processes, the rest in this one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nestquant_cli.storage.files import read_json, sha256_file
from tests.families import Outcome, error_line, in_process

ROOT = Path(__file__).resolve().parents[1]
DETERMINED = ("config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "tokenizer.json")


def process(*arguments: object) -> Outcome:
    """Runs the installed command's entry point as a process of its own, from another folder."""
    program = "import sys; from nestquant_cli.cli.main import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", program, *(str(argument) for argument in arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd="/")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def text(tiny_text_file: Path) -> list[object]:
    return ["--dataset", tiny_text_file, "--seqlen", 64]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, text: list[object]) -> Path:
    """W4A4KV4 by a process of its own, calibrating on the way."""
    folder = tmp_path_factory.mktemp("end") / "packed"
    code, output, error = process("quantize", tiny_model_folder, "--output", folder, *text, "--samples", 4)
    assert code == 0, error
    assert f"nestquant eval-ppl {folder}" in output
    assert "quantizing layers" in error and "Traceback" not in error and "%|" not in error
    return folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_a_calibration_first_gives_the_same_checkpoint(
    nestquant: Callable[..., Outcome], packed: Path, tiny_model_folder: Path, text: list[object], tmp_path: Path
) -> None:
    stored, folder = tmp_path / "calibration", tmp_path / "packed"
    assert nestquant("calibrate", tiny_model_folder, "--output", stored, *text, "--samples", 4)[0] == 0
    assert nestquant("quantize", tiny_model_folder, "--calibration", stored, "--output", folder)[0] == 0
    for name in DETERMINED[1:]:
        assert sha256_file(folder / name) == sha256_file(packed / name), name


@pytest.mark.slow
def test_perplexity_beside_the_original_as_a_process(
    packed: Path, tiny_model_folder: Path, text: list[object], tmp_path: Path
) -> None:
    report = tmp_path / "ppl.json"
    code, output, error = process(
        "--quiet", "eval-ppl", packed, *text, "--max-windows", 3, "--baseline", tiny_model_folder, "--output", report
    )
    assert (code, error) == (0, "")
    found: dict[str, Any] = read_json(report)
    assert {"perplexity", "standard_error", "windows", "seconds", "protocol"} <= found.keys()
    assert found["windows"] == 3 and f"{found['perplexity']:.4f}" in output
    assert 0 < found["kl_divergence"] < 1 and 0.2 < found["top1_agreement"] <= 1
    assert found["baseline_perplexity"] == pytest.approx(found["perplexity"], rel=0.5)


def test_the_gate_of_a_perplexity(nestquant: Callable[..., Outcome], packed: Path, text: list[object]) -> None:
    words = ["eval-ppl", packed, *text, "--max-windows", 2, "--fail-above"]
    assert nestquant(*words, 1e9)[0] == 0
    code, output, _ = nestquant(*words, 1.5)
    assert code == 1
    assert "gate failed: perplexity" in output
    code, _, error = nestquant(*words[:-1], "--junit", "gates.xml")
    assert code == 2 and "give --fail-above" in error_line(error)


def test_tasks_and_their_gate(nestquant: Callable[..., Outcome], packed: Path, tmp_path: Path) -> None:
    report = tmp_path / "tasks.json"
    words: list[object] = ["eval-tasks", packed, "--include-path", ROOT / "tests" / "tasks", "--tasks", "sample_piqa"]
    code, output, _ = nestquant(*words, "--output", report, "--fail-below", "sample_piqa=0")
    assert code == 0 and "sample_piqa" in output
    assert 0 <= read_json(report)["results"]["sample_piqa"]["acc,none"] <= 1
    assert nestquant(*words, "--fail-below", "sample_piqa=1.01")[0] == 1


def test_inspect_counts_the_bytes_on_disk(nestquant: Callable[..., Outcome], packed: Path, tmp_path: Path) -> None:
    report = tmp_path / "inspect.json"
    code, output, _ = nestquant("inspect", packed, "--output", report)
    assert code == 0 and output
    found = read_json(report)
    weights = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert found["quantized_weights"] == weights
    assert found["file_bytes"] == sum(path.stat().st_size for path in packed.iterdir())
    assert 4.2 < found["bits_per_weight"] < 6  # tiny matrices: two bytes of scale a row of 64 weights, and the norms
    assert len(found["layers"]) == 2


def test_verify_finds_nothing_wrong(nestquant: Callable[..., Outcome], packed: Path) -> None:
    code, output, error = nestquant("verify", packed)
    assert code == 0, error
    assert output


def _truncate(folder: Path) -> str:
    name = "model-00002-of-00003.safetensors"
    with open(folder / name, "r+b") as file:
        file.truncate((folder / name).stat().st_size - 7)
    return name


def _flip(folder: Path) -> str:
    name = "model-00001-of-00003.safetensors"
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    return name


def _rewrite(folder: Path) -> str:
    name = "model-00001-of-00003.safetensors"
    tensors = load_file(folder / name)
    tensors["model.layers.0.input_layernorm.weight"] += 1
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return name


def _remove(folder: Path) -> str:
    name = "model-00003-of-00003.safetensors"
    (folder / name).unlink()
    return name


def _config(folder: Path) -> str:
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text(content.replace('"unit": 0.', '"unit": 1.', 1))
    return "config.json"


def _unfinished(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


@pytest.mark.parametrize("damage", [_truncate, _flip, _rewrite, _remove, _config, _unfinished])
@pytest.mark.parametrize("command", ["eval-ppl", "verify"])
def test_a_damaged_checkpoint_is_named_by_every_command(
    nestquant: Callable[..., Outcome],
    copy: Path,
    text: list[object],
    command: str,
    damage: Callable[[Path], str],
) -> None:
    name = damage(copy)
    code, _, error = nestquant(command, copy, *(text if command == "eval-ppl" else []))
    assert code == 2
    assert name in error_line(error)


def test_bad_input_of_an_evaluation_leaves_nothing_behind(
    nestquant: Callable[..., Outcome], packed: Path, text: list[object], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    for words, told in (
        (["eval-ppl", tmp_path / "nowhere", *text], "nowhere does not exist"),
        (["eval-ppl", packed, *text, "--seqlen", 10**6], "fewer than one window"),
        (["eval-ppl", packed, *text, "--baseline", tmp_path / "nowhere"], "nowhere does not exist"),
        (["inspect", tmp_path], "is not a packed checkpoint"),
        (["verify", tmp_path / "nowhere"], "does not exist"),
    ):
        options: list[object] = [] if words[0] == "verify" else ["--output", report]
        code, _, error = nestquant(*words, *options)
        assert code == 2, words
        assert told in error_line(error)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_ends_with_one_line_and_code_2(copy: Path, text: list[object], tmp_path: Path) -> None:
    _flip(copy)
    for words in (["quantize", tmp_path / "nowhere"], ["eval-ppl", copy, *text]):
        code, output, error = process("--quiet", *words)
        assert (code, output, error.count("\n")) == (2, "", 1)
        assert error.startswith("error: ")


@pytest.mark.slow
def test_the_model_loads_with_transformers_alone_after_the_import(packed: Path) -> None:
    program = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "import nestquant_cli\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "inputs = tokenizer('The lattice holds', return_tensors='pt')\n"
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(packed)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The lattice holds")
