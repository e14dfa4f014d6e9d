"""`nestquant compare` in this process, on the tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.comparison import scoring
from nestquant_cli.storage.files import read_json
from tests.families import Outcome, error_line, in_process

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def words(tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path) -> list[object]:
    text = ["--dataset", tiny_text_file, "--eval-dataset", tiny_text_file, "--seqlen", 48, "--samples", 3]
    return ["compare", tiny_model_folder, *text, "--max-windows", 3, "--output", tmp_path / "out", "--recipes"]


def recipes(*names: str) -> str:
    return ",".join(str(CONFIGS / f"{name}.yaml") for name in names)


def test_one_table_plots_and_a_report(nestquant: Callable[..., Outcome], words: list[object], tmp_path: Path) -> None:
    names = ["rtn-w4", "gptq-w3-g64", "quarot-w4a4kv4", "w4a4kv4"]
    tasks = ["--tasks", "sample_piqa", "--limit", 2, "--include-path", ROOT / "tests" / "tasks"]
    code, output, error = nestquant(*words, recipes(*names), "--against", "quarot-w4a4kv4", *tasks)
    assert code == 0, error
    found: dict[str, Any] = read_json(tmp_path / "out" / "comparison.json")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["reference", *names]
    for name in names:
        row = rows[name]
        assert name in output and f"{row['perplexity']:.3f}" in output
        assert row["gap"] == pytest.approx(row["perplexity"] - rows["reference"]["perplexity"])
        assert 0 < row["kl_divergence"] < 2 and 0 <= row["top1_agreement"] <= 1 and row["seconds"] > 0
        assert 3 < row["bits_per_weight"] < 7 and len(row["layer_errors"]) == 2
        assert 0 <= row["tasks"]["sample_piqa"][0] <= 1
    assert rows["w4a4kv4"]["bits"] == {"weight": 4, "act": 4, "kv": 4}
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"{rows['rtn-w4']['perplexity']:.3f}" in report and "sample_piqa" in report
    for plot in ("perplexity.png", "layer_errors.png"):
        assert f"({plot})" in report and (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "out").glob("calibration-*"))


def test_a_second_run_does_only_what_is_new(
    nestquant: Callable[..., Outcome], words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = scoring.score_window, list[int]()

    def interrupted(models: Any, *rest: Any) -> Any:
        calls.append(len(models))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(models, *rest)

    monkeypatch.setattr(scoring, "score_window", interrupted)
    assert nestquant(*words, recipes("rtn-w4"))[0] == 130
    before = (tmp_path / "out" / "rtn-w4" / "config.json").stat().st_mtime_ns
    assert nestquant(*words, recipes("rtn-w4"))[0] == 0
    assert calls == [1, 1, 1, 1]  # the first window was kept
    assert nestquant(*words, recipes("rtn-w4", "w4"))[0] == 0
    assert calls[4:] == [1, 1, 1]
    assert (tmp_path / "out" / "rtn-w4" / "config.json").stat().st_mtime_ns == before
    one = read_json(tmp_path / "out" / "comparison.json")
    assert nestquant(*words, recipes("rtn-w4", "w4"))[0] == 0
    assert read_json(tmp_path / "out" / "comparison.json") == one and len(calls) == 7


def test_another_text_takes_no_scores_away(
    nestquant: Callable[..., Outcome], words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = scoring.score_window, list[int]()

    def counted(models: Any, *rest: Any) -> Any:
        calls.append(len(models))
        return real(models, *rest)

    monkeypatch.setattr(scoring, "score_window", counted)
    other = tmp_path / "other.txt"
    other.write_text("another text, " * 400)
    for text in ("", str(other), "", str(other)):
        assert nestquant(*words, recipes("rtn-w4"), *(["--eval-dataset", text] if text else []))[0] == 0
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: [recipes("rtn-w4"), "--against", "w4"], "there is no recipe 'w4'"),
        (lambda base: [recipes("rtn-w4", "rtn-w4")], "two rows would be named"),
        (lambda base: [base / "absent.yaml"], "cannot be read as YAML"),
        (lambda base: [recipes("rtn-w4"), "--tasks", "absent", "--include-path", base / "no"], "is not a folder"),
        (lambda base: [recipes("rtn-w4"), "--seqlen", 100000], "fewer than one window"),
        (lambda base: [recipes("rtn-w4"), "--limit", 5], "--limit and --include-path are for tasks"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    nestquant: Callable[..., Outcome], words: list[object], tmp_path: Path, change: Any, message: str
) -> None:
    code, _, error = nestquant(*words, *change(tmp_path))
    assert code == 2 and message in error_line(error)
    assert not (tmp_path / "out").exists()


def test_a_local_text_for_calibration_is_not_scored(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    code, _, error = nestquant("compare", tiny_model_folder, "--recipes", recipes("w4"), "--dataset", tiny_text_file)
    assert code == 2 and "--eval-dataset" in error_line(error)


def test_another_recipe_under_the_same_name_is_refused(
    nestquant: Callable[..., Outcome], words: list[object], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: integer\nweight_bits: 4\nact_bits: 16\nkv_bits: 16\n")
    assert nestquant(*words, recipe)[0] == 0
    recipe.write_text("method: integer\nweight_bits: 3\nact_bits: 16\nkv_bits: 16\n")
    code, _, error = nestquant(*words, recipe)
    assert code == 2 and "with another weight_bits" in error_line(error)
