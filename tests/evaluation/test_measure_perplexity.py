"""A report holds the fixed keys and the whole protocol, and gates and bad input give their exit codes."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.text import load_text
from nestquant_cli.calibration.windows import token_windows
from nestquant_cli.evaluation.measure_perplexity import PerplexityOptions, measure_perplexity
from nestquant_cli.evaluation.perplexity import score
from nestquant_cli.models.load import load_unpacked_model
from nestquant_cli.models.source import fingerprint, resolve
from tests.families import in_process


@pytest.fixture
def options(tiny_model_folder: Path, tiny_text_file: Path) -> PerplexityOptions:
    return PerplexityOptions(str(tiny_model_folder), str(tiny_text_file), seqlen=64, max_windows=4, device="cpu")


def test_the_report_follows_the_protocol(options: PerplexityOptions) -> None:
    report = measure_perplexity(options).as_json()
    assert list(report) == ["perplexity", "standard_error", "windows", "seconds", "protocol"]
    source = resolve(options.model)
    text = load_text(options.dataset, "test")
    windows = token_windows(text, AutoTokenizer.from_pretrained(options.model), 64, "default")
    assert report["perplexity"] == score(load_unpacked_model(source), windows[:4], progress=False).perplexity
    protocol = report["protocol"]
    expected = {"windows": 4, "windows_in_text": len(windows), "seqlen": 64, "stride": 64, "scored_per_window": 63}
    expected |= {
        "bos": "default",
        "join": "\n\n",
        "seed": 0,
        "text_sha256": text.sha256,
        "line_ends": "LF",
        "baseline": None,
    }
    assert {key: protocol[key] for key in expected} == expected
    assert protocol["model"] == {
        "name": "tiny-llama",
        "kind": "folder",
        "description": "tiny-llama",
        "revision": None,
        "commit": None,
        "sha256": fingerprint(source),
        "dtype": "float32",
        "attention": "sdpa",
        "device": "cpu",
    }
    assert {"python", "torch", "transformers", "nestquant_cli"} <= set(protocol["versions"])
    json.dumps(report, allow_nan=False)


def test_all_windows_are_scored_by_default(options: PerplexityOptions) -> None:
    protocol = measure_perplexity(dataclasses.replace(options, max_windows=None)).protocol
    assert protocol["windows"] == protocol["windows_in_text"] == protocol["tokens"] // 64


def test_a_baseline_adds_its_keys(options: PerplexityOptions) -> None:
    report = measure_perplexity(dataclasses.replace(options, baseline=options.model)).as_json()
    assert report["baseline_perplexity"] == report["perplexity"]
    assert report["baseline_standard_error"] == report["standard_error"]
    assert (report["kl_divergence"], report["top1_agreement"]) == (0, 1)
    assert report["protocol"]["baseline"] == report["protocol"]["model"]


def test_bos_in_each_window_shortens_the_stride(options: PerplexityOptions) -> None:
    protocol = measure_perplexity(dataclasses.replace(options, bos="each")).protocol
    assert (protocol["bos"], protocol["stride"], protocol["scored_per_window"]) == ("each", 63, 63)


def test_a_baseline_with_other_tokens_is_refused(options: PerplexityOptions, tmp_path: Path) -> None:
    other = Path(shutil.copytree(options.model, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(NestQuantError, match="turn the text into different tokens"):
        measure_perplexity(dataclasses.replace(options, baseline=str(other)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "./nowhere"}, "does not exist"),
        ({"baseline": "./nowhere"}, "does not exist"),
        ({"device": "nosuch"}, "device 'nosuch' cannot be used"),
        ({"max_windows": 0}, "--max-windows 0"),
        ({"seqlen": 1}, "--seqlen 1"),
        ({"seqlen": 10**6}, "fewer than one window"),
        ({"bos": "twice"}, "--bos twice"),
        ({"dataset": "./nowhere.txt"}, "cannot be read"),
    ],
)
def test_bad_input_is_refused(options: PerplexityOptions, change: dict[str, object], message: str) -> None:
    with pytest.raises(NestQuantError, match=message):
        measure_perplexity(dataclasses.replace(options, **change))  # type: ignore[arg-type]


def test_the_gate_fails_after_the_report_is_written(
    options: PerplexityOptions,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nestquant, output = in_process(capfd, monkeypatch), tmp_path / "ppl.json"
    words = ["eval-ppl", options.model, "--dataset", options.dataset, "--seqlen", 64, "--max-windows", 2]
    words += ["--device", "cpu", "--output", output, "--fail-above"]
    code, printed, _ = nestquant(*words, 1.0)
    assert code == 1 and "gate failed: perplexity" in printed
    perplexity = json.loads(output.read_text())["perplexity"]
    assert math.isfinite(perplexity)
    assert nestquant(*words, perplexity, "--baseline", options.model)[0] == 0
