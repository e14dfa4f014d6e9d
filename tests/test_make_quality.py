"""The script that makes the tables of docs/quality.md, on the tiny model."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.comparison import scoring
from nestquant_cli.storage.files import read_json

ROOT = Path(__file__).resolve().parents[1]
TOKENS, WINDOWS = 48, 12


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_quality", ROOT / "scripts" / "make_quality.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_both_texts_get_a_table_and_nothing_is_done_twice(
    script: Any, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    real = scoring.score_window

    def counted(models: Any, *rest: Any) -> Any:
        calls.append(len(models))
        return real(models, *rest)

    monkeypatch.setattr(scoring, "score_window", counted)
    other, out = tmp_path / "other.txt", tmp_path / "out"
    other.write_text("Another text of many words, all of them short. " * 200)
    words = [str(tiny_model_folder), "--calibration", tiny_text_file, "--wikitext2", tiny_text_file, "--c4", other]
    words += ["--samples", 2, "--seqlen", TOKENS, "--max-windows", WINDOWS, "--recipes", "rtn-w4,quarot-w4a4kv4"]
    words += ["--output", out]
    monkeypatch.setattr(script, "AGAINST", "quarot-w4a4kv4")
    for _ in range(2):
        script.main(list(map(str, words)))
    assert sum(calls) == 2 * 2 * WINDOWS
    written = (out / "tables.md").read_text()
    assert written.count("| rtn-w4.yaml | ") == written.count("gap closed (quarot-w4a4kv4)") == 2
    assert f"{WINDOWS} of" in written and "KL, windows 10 to 11" in written


def test_divergence_of_all_windows_is_that_of_the_parts(
    script: Any, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = ["--calibration", tiny_text_file, "--wikitext2", tiny_text_file, "--output", out, "--recipes", "rtn-w4"]
    script.main([str(tiny_model_folder), *map(str, text), "--seqlen", "32", "--samples", "2", "--max-windows", "14"])
    found = read_json(out / "comparison.json")
    protocol, whole = found["protocol"], found["rows"][1]["kl_divergence"]
    seen, unseen = (float(script.kl(out, "rtn-w4", protocol, windows)) for windows in (slice(10), slice(10, None)))
    assert (10 * seen + 4 * unseen) / 14 == pytest.approx(whole, abs=1e-3)


def test_every_recipe_of_the_tables_exists(script: Any) -> None:
    assert all((script.CONFIGS / f"{name}.yaml").is_file() for name in script.RECIPES.split())
    assert script.AGAINST in script.RECIPES
