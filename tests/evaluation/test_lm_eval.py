"""The stock `lm_eval` command on a packed checkpoint, which scores as `eval-tasks` does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nestquant_cli.evaluation.measure_tasks import TaskOptions, measure_tasks

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("sample_piqa", "sample_arc_easy")


@pytest.mark.slow
@pytest.mark.parametrize("template", [False, True])
def test_the_stock_command_scores_as_eval_tasks(talking_packed: Path, tmp_path: Path, template: bool) -> None:
    command = Path(sys.executable).parent / "lm_eval"
    arguments = {
        "--model": "hf",
        "--model_args": f"pretrained={talking_packed},trust_remote_code=True",
        "--include_path": ROOT / "tests" / "tasks",
        "--tasks": ",".join(TASKS),
        "--device": "cpu",
        "--batch_size": 2,
        "--output_path": tmp_path / "out",
    }
    line = [str(command), *(str(part) for pair in arguments.items() for part in pair)]
    if template:
        line += ["--apply_chat_template", "--system_instruction", "be brief", "--num_fewshot", "2", "--seed", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    stock = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text(encoding="utf-8"))["results"]
    options = TaskOptions(str(talking_packed), TASKS, include_path=ROOT / "tests" / "tasks", batch_size=2, device="cpu")
    if template:
        options = replace(options, chat_template=True, system_instruction="be brief", num_fewshot=2)
    ours = measure_tasks(options).results
    for task in TASKS:
        assert ours[task] == {name: stock[task][name] for name in ours[task]}
