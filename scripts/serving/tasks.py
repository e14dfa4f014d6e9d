"""lm-eval through a server, and `nestquant eval-tasks` on the same checkpoint: the same scores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .checks import Outcome

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("sample_piqa", "sample_arc_easy", "sample_winogrande")
FOLDER = ROOT / "tests" / "tasks"


def same_scores(address: str, checkpoint: str, dtype: str, folder: Path) -> Outcome:
    """Runs both and compares every metric.

    Args:
        address: of the server.
        folder: for their results and logs.
    """
    served, own = folder / "lm-eval", folder / "eval-tasks.json"
    names = ",".join(TASKS)
    settings = f"model={checkpoint},base_url={address}/v1/completions,tokenizer={checkpoint}"
    settings += ",tokenizer_backend=huggingface,num_concurrent=4,max_length=512"
    through = ["-m", "lm_eval", "--model", "local-completions", "--model_args", settings, "--tasks", names]
    _run([*through, "--include_path", str(FOLDER), "--output_path", str(served)], folder / "lm-eval.log")
    alone = ["-m", "nestquant_cli", "eval-tasks", checkpoint, "--tasks", names, "--include-path", str(FOLDER)]
    _run([*alone, "--dtype", dtype, "--output", str(own)], folder / "eval-tasks.log")
    newest = max(served.rglob("results*.json"), key=lambda path: path.stat().st_mtime)
    return compared(*(json.loads(path.read_text(encoding="utf-8"))["results"] for path in (newest, own)))


def compared(served: dict[str, dict[str, Any]], own: dict[str, dict[str, Any]]) -> Outcome:
    """Whether two results of lm-eval have the same tasks, metrics and values."""
    one, other = scores(served), scores(own)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(one.items()))
    if one == other and one:
        return True, shown
    apart = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    told = ", ".join(f"{name}: {one.get(name)} served, {other.get(name)} by eval-tasks" for name in apart)
    return False, told or "no scores"


def scores(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Each score by task and metric, without standard errors and settings."""
    return {
        f"{task} {metric.partition(',')[0]}": float(value)
        for task, values in results.items()
        for metric, value in values.items()
        if "," in metric and "stderr" not in metric and isinstance(value, int | float)
    }


def _run(words: list[str], log: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    with log.open("wb") as out:
        done = subprocess.run([sys.executable, *words], env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{words[1]} ended with {done.returncode}: {' '.join(last)}")
