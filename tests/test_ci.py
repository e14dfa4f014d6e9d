"""The workflow of configs/ci, its steps run as GitHub runs them, on the tiny model."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nestquant_cli.storage.files import read_json

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = yaml.safe_load((ROOT / "configs" / "ci" / "quality.yml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["quality"]["steps"]

Runner = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def runner(
    talking_packed: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> Callable[..., Runner]:
    """Runs the named step of the workflow by bash, with the `env` of the workflow but for what a test sets."""
    program = tmp_path / "bin" / "nestquant"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nestquant_cli "$@"\n')
    program.chmod(0o755)

    def prepare(**settings: str) -> Runner:
        own = {name: str(value) for name, value in WORKFLOW["env"].items()}
        own |= {"CHECKPOINT": str(talking_packed), "BASELINE": str(tiny_model_folder), "DATASET": str(tiny_text_file)}
        own |= {"MAX_WINDOWS": "1", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")} | settings
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = os.environ | own | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

        def run(name: str) -> "subprocess.CompletedProcess[str]":
            script = next(step for step in STEPS if step.get("name") == name)["run"]
            script = script.replace("eval-ppl", "eval-ppl --seqlen 64")
            script = script.replace("eval-tasks", f"eval-tasks --include-path {ROOT / 'tests' / 'tasks'}")
            words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
            return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

        return run

    return prepare


def test_steps_are_those_that_github_knows() -> None:
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash"  # GitHub's meaning of it is what `runner` does
    used = [step["uses"].split("@")[0] for step in STEPS if "uses" in step]
    assert used == ["actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact"]
    assert all(("run" in step) != ("uses" in step) for step in STEPS)
    assert next(step for step in STEPS if "cache" in step.get("uses", ""))["with"]["path"] == "~/.cache/huggingface"


@pytest.mark.slow
def test_a_failed_gate_fails_its_step_and_the_rest_is_kept(runner: Callable[..., Runner], tmp_path: Path) -> None:
    run = runner(FAIL_ABOVE="1.5", TASKS="sample_piqa", LIMIT="2", FAIL_BELOW="sample_piqa=0")
    failed = run("Perplexity of the checkpoint and the original")
    assert failed.returncode == 1 and "gate failed: perplexity" in failed.stdout, failed.stderr
    passed = run("Tasks")
    assert passed.returncode == 0, passed.stderr
    assert run("Tables on the page of the run").returncode == 0
    results = tmp_path / "results"
    perplexity: dict[str, Any] = read_json(results / "perplexity.json")
    summary = (tmp_path / "summary.md").read_text()
    assert f"{perplexity['perplexity']:.4f}" in summary and "gate failed" in summary and "sample_piqa" in summary
    suite = ET.parse(results / "perplexity.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    message = suite.find("testcase/failure")
    assert message is not None and message.get("message") == f"perplexity {perplexity['perplexity']:.4f} > 1.5"
    suite = ET.parse(results / "tasks.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


def test_bad_input_is_no_failed_gate(runner: Callable[..., Runner], tmp_path: Path) -> None:
    found = runner(CHECKPOINT=str(tmp_path / "nowhere"))("Perplexity of the checkpoint and the original")
    assert found.returncode == 2 and "does not exist" in found.stderr
    assert not (tmp_path / "results" / "perplexity.xml").exists()
