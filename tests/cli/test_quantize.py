"""`nestquant quantize` in this process: options, plan, and every bad input as a new user would meet it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from nestquant_cli.storage.files import read_json
from tests.families import Outcome, error_line, in_process, pack


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def text(tiny_text_file: Path) -> list[object]:
    return ["--dataset", tiny_text_file, "--samples", 3, "--seqlen", 48]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("quantize") / "packed")


def test_a_recipe_file_with_options_over_it(
    nestquant: Callable[..., Outcome], text: list[object], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("weight_bits: 3\nact_bits: 16\nkv_bits: 16\nseed: 5\n")
    folder = tmp_path / "packed"
    code, output, _ = nestquant(
        "quantize", tiny_model_folder, "--config", tmp_path / "recipe.yaml", "--kv-bits", 4, "--output", folder, *text
    )
    assert code == 0
    section = read_json(folder / "config.json")["quantization_config"]
    assert section["bits"] == {"weight": 3.0, "act": 16.0, "kv": 4.0} and section["recipe"]["seed"] == 5
    assert "q_proj" in output and f"nestquant eval-ppl {folder}" in output
    assert output.splitlines()[-1] == f"serve: vllm serve {folder}"


@pytest.mark.parametrize("file", ["", "paths: 2\n"])
def test_paths_reach_the_recipe_over_a_file(
    nestquant: Callable[..., Outcome],
    tiny_model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
) -> None:
    caplog.set_level("INFO", "nestquant")
    config = tmp_path / "recipe.yaml"
    config.write_text(f"seed: 1\n{file}", encoding="utf-8")
    words = ["quantize", tiny_model_folder, "--config", config, "--plan"]
    assert nestquant(*words, "--paths", 5)[0] == 0
    assert "paths 5" in caplog.messages[1]
    for paths in (0, -3, 65, 1_000_000):
        code, _, error = nestquant(*words, "--paths", paths)
        assert code == 2 and f"paths {paths} is not an integer from 1 to 64" in error_line(error)


def test_the_folder_is_named_after_model_and_bits(
    nestquant: Callable[..., Outcome],
    text: list[object],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nestquant("quantize", tiny_model_folder, "--weight-bits", 3.5, *text)[0] == 0
    assert (tmp_path / "tiny-llama-nestquant-w3.5" / "config.json").is_file()


def test_a_plan_writes_nothing(nestquant: Callable[..., Outcome], tiny_model_folder: Path, tmp_path: Path) -> None:
    code, output, _ = nestquant("quantize", tiny_model_folder, "--plan", "--output", tmp_path / "packed")
    assert code == 0
    assert "mlp.down_proj" in output and "bits each" in output and "memory" in output
    assert not any(tmp_path.iterdir())


Bad = Callable[[Path, Path, Path], list[object]]  # (folder to use, a copy of the model, a packed checkpoint) → words


def _no_config(base: Path, model: Path, packed: Path) -> list[object]:
    (model / "config.json").unlink()
    return [model]


def _encoder_decoder(base: Path, model: Path, packed: Path) -> list[object]:
    T5Config(num_layers=1, d_model=8, d_ff=8, num_heads=1).save_pretrained(base / "t5")
    return [base / "t5"]


def _nan(base: Path, model: Path, packed: Path) -> list[object]:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return [model]


def _truncated(base: Path, model: Path, packed: Path) -> list[object]:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])
    return [model]


def _short_text(base: Path, model: Path, packed: Path) -> list[object]:
    (base / "short.txt").write_text("The lattice holds every point.")
    return [model, "--dataset", base / "short.txt"]


def _no_calibration(base: Path, model: Path, packed: Path) -> list[object]:
    (base / "empty").mkdir()
    return [model, "--calibration", base / "empty"]


def _full_output(base: Path, model: Path, packed: Path) -> list[object]:
    (base / "out").mkdir()
    (base / "out" / "notes.txt").write_text("mine")
    return [model]


def _recipe(content: str) -> Bad:
    def words(base: Path, model: Path, packed: Path) -> list[object]:
        (base / "recipe.yaml").write_text(content)
        return [model, "--config", base / "recipe.yaml"]

    return words


BAD: dict[str, tuple[Bad, str]] = {
    "no such path": (lambda base, model, packed: [base / "nowhere"], "nowhere does not exist"),
    "no config": (_no_config, "has no config.json"),
    "encoder-decoder": (_encoder_decoder, "is an encoder-decoder"),
    "no experts": (lambda base, model, packed: [model, "--all-experts"], "the model has no experts"),
    "packed": (lambda base, model, packed: [packed], "is a packed checkpoint already"),
    "nan": (_nan, "model.layers.1.self_attn.v_proj.weight has 1 NaN or infinite entries"),
    "truncated": (_truncated, "model.safetensors is truncated"),
    "short text": (_short_text, "fewer than one window of 48"),
    "no calibration": (_no_calibration, "is not a finished calibration"),
    "full output": (_full_output, "is not empty"),
    "bits in tenths": (lambda base, model, packed: [model, "--bits", 4.3], "bits 4.3 are not a multiple of 1/8"),
    "bits too few": (lambda base, model, packed: [model, "--weight-bits", 1.5], "bits 1.5 are out of range, 2 to 8"),
    "bits too many": (lambda base, model, packed: [model, "--kv-bits", 9], "bits 9 are out of range, 2 to 8"),
    "bits no number": (lambda base, model, packed: [model, "--bits", "four"], "'--bits'"),
    "nothing to do": (lambda base, model, packed: [model, "--bits", 16], "all left at 16 bits"),
    "method": (lambda base, model, packed: [model, "--method", "magic"], "there is no method 'magic'"),
    "damping": (lambda base, model, packed: [model, "--damping", 0], "damping 0.0 is not in (0, 1]"),
    "recipe": (_recipe("bitz: 4\n"), "unknown setting 'bitz'"),
    "recipe no YAML": (_recipe("a: [\n"), "cannot be read as YAML"),
    "device": (lambda base, model, packed: [model, "--device", "abacus"], "device 'abacus' cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    nestquant: Callable[..., Outcome],
    text: list[object],
    tiny_model_folder: Path,
    packed: Path,
    tmp_path: Path,
    case: str,
) -> None:
    words, message = BAD[case]
    model = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    special = words(tmp_path, model, packed)
    before = sorted(tmp_path.rglob("*"))
    code, output, error = nestquant("quantize", "--output", tmp_path / "out", *text, *special)
    assert (code, output) == (2, "")
    line = error_line(error)
    assert message in line and line.count("; ") >= 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", [[], ["--seed", 1], ["--act-bits", 3]], ids=["model", "seed", "bits"])
def test_a_calibration_of_something_else_is_refused(
    nestquant: Callable[..., Outcome],
    text: list[object],
    tiny_model_folder: Path,
    make_model_folder: Callable[[Path, int], Path],
    tmp_path: Path,
    option: list[object],
) -> None:
    assert nestquant("calibrate", tiny_model_folder, "--output", tmp_path / "calibration", *text)[0] == 0
    model = tiny_model_folder if option else make_model_folder(tmp_path / "other", 1)
    words = ["--calibration", tmp_path / "calibration", "--output", tmp_path / "out", *option]
    code, _, error = nestquant("quantize", model, *words)
    assert code == 2
    assert "was calibrated with" in error_line(error)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_recipe_is_not_mixed_in(
    nestquant: Callable[..., Outcome], text: list[object], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "INCOMPLETE").mkdir(parents=True)
    (tmp_path / "out" / "INCOMPLETE" / "run.json").write_text(json.dumps({"recipe": {"weight_bits": 3.0}}))
    code, _, error = nestquant("quantize", tiny_model_folder, "--output", tmp_path / "out", *text)
    assert code == 2 and "holds an unfinished run" in error_line(error)
    assert nestquant("quantize", tiny_model_folder, "--output", tmp_path / "out", "--no-resume", *text)[0] == 0


def test_a_memory_budget_is_a_size(
    nestquant: Callable[..., Outcome], text: list[object], tiny_model_folder: Path, tmp_path: Path
) -> None:
    words = ("quantize", tiny_model_folder, "--output", tmp_path / "out", *text)
    code, _, error = nestquant(*words, "--memory-budget", "much")
    assert code == 2 and "--memory-budget 'much' is not a size" in error_line(error)
    assert nestquant(*words, "--memory-budget", "1KiB")[0] == 0


def test_a_plan_says_what_to_expect(
    nestquant: Callable[..., Outcome], text: list[object], tiny_model_folder: Path, tmp_path: Path
) -> None:
    code, output, _ = nestquant("quantize", tiny_model_folder, "--output", tmp_path / "out", *text, "--plan")
    assert code == 0 and not (tmp_path / "out").exists()
    for line in ("decoder layers: 2, read one by one", "checkpoint: ", "peak memory: about ", "time: about "):
        assert line in output
