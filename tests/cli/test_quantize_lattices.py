"""`--method glvq` on the command line, from quantize to generate, and what contradicts it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.modules.parse_layout import parse_layout
from nestquant_cli.storage.files import read_json
from tests.families import Outcome, in_process


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.mark.slow
def test_from_one_command_to_text(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    folder, found = tmp_path / "packed", tmp_path / "inspect.json"
    text = ["--dataset", tiny_text_file, "--samples", 3, "--seqlen", 48]
    method = ["--method", "glvq", "--bits", 2.5]
    assert nestquant("quantize", tiny_model_folder, *method, *text, "--output", folder)[0] == 0
    section = read_json(folder / "config.json")["quantization_config"]
    assert section["bits"] == {"weight": 2.5, "act": 16.0, "kv": 16.0}
    assert section["layout"]["format_version"] == 4
    assert nestquant("verify", folder, "--original", tiny_model_folder)[0] == 0
    code, output, _ = nestquant("inspect", folder, "--output", found)
    assert code == 0 and "lattices of dimension 8" in output
    parts = {part["name"]: part["bytes"] for part in json.loads(found.read_text())["parts"]}
    assert parts["lattices"] > 0
    evaluation = ["--dataset", tiny_text_file, "--seqlen", 48, "--max-windows", 2]
    assert nestquant("eval-ppl", folder, *evaluation)[0] == 0
    assert nestquant("generate", folder, "The lattice", "--max-new-tokens", 2, "--device", "cpu")[0] == 0
    settings = ["--steps", 2, "--seqlen", 32, "--held-out", 2, "--output", tmp_path / "tuned", *text[:2]]
    code, output, _ = nestquant("tune", folder, "--model", tiny_model_folder, *settings)
    assert code == 0 and "KL from the original" in output

    layout = section["layout"]
    name = next(iter(layout["linears"]))
    for bits, curves in (("9", "0"), ("3" * 9, "0" * 9), ("4", "0"), ("2", "8"), (2, 0)):
        layout["linears"][name]["groups"] = {"bits": bits, "curves": curves}
        with pytest.raises(NestQuantError, match="a matrix"):
            parse_layout(layout)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--bits", 2, "--act-bits", 4], "glvq codes weights only"),
        (["--bits", 2, "--kv-bits", 4], "glvq codes weights only"),
        (["--bits", 2.05], "in eighths"),
        (["--bits", 16], "all left at 16 bits"),
        (["--bits", 3, "--allocation", "mixed"], "mixed rates choose nested codes"),
    ],
)
def test_contradictions_are_refused(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tmp_path: Path, options: list[object], cause: str
) -> None:
    code, _, errors = nestquant("quantize", tiny_model_folder, "--method", "glvq", "--output", tmp_path / "x", *options)
    assert code == 2 and cause in errors and not (tmp_path / "x").exists()


def test_a_plan_is_made(nestquant: Callable[..., Outcome], tiny_model_folder: Path, tmp_path: Path) -> None:
    code, output, _ = nestquant("quantize", tiny_model_folder, "--method", "glvq", "--plan", "--output", tmp_path / "x")
    assert code == 0 and "mlp.down_proj" in output and "bits each" in output
