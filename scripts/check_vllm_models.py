"""Serves tiny random models of many families with vLLM and compares them with transformers: which work, which do not.

    make vllm
    .venv-vllm/bin/python scripts/check_vllm_models.py --out build/vllm-models.jsonl       # all; half an hour of a core
    .venv-vllm/bin/python scripts/check_vllm_models.py --only gemma2 mixtral

Each is quantized to W4 and asked in vLLM on the CPU, in float32, without compiling. The log-probabilities of prompts
and of greedy tokens must be those of transformers on the same checkpoint. Where they are not, the original is asked,
too, which tells what vLLM itself does. Cases are in serving/models.yaml. One JSON line a case; cases that --out has
already are left out. A Markdown table of all rows comes last. Exit code 0: none differs or fails; 1: some do; 77: vLLM
is not installed, so nothing was checked.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch and vLLM read them: one thread a process, nothing from the network, engines in the process that asks.
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
SETTINGS |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
SETTINGS |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

if TYPE_CHECKING or __package__:
    from scripts.serving.checks import FAILED, PASSED, SKIPPED
    from scripts.serving.models import BAD, CASES, run_case, verdict
else:  # the script's own folder is on the path of a script that is run
    from serving.checks import FAILED, PASSED, SKIPPED
    from serving.models import BAD, CASES, run_case, verdict

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Runs the cases that are wanted and not done yet; returns the exit code."""
    options = parse()
    if importlib.util.find_spec("vllm") is None:
        print(f"skipped: {sys.executable} has no vllm; nothing was checked; `make vllm` installs it")
        return SKIPPED
    import vllm.entrypoints.llm  # noqa: F401  (20 s, once for all children)

    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    rows = {row["name"]: row for row in map(json.loads, lines)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only or CASES:
        if name in rows:
            continue
        rows[name] = run_case(name, options.work, options.timeout, options.keep)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(f"{name}: {': '.join(verdict(rows[name]))}", flush=True)
    print("\n".join(["", *table(list(rows.values()))]))
    return FAILED if any(verdict(row)[0] in BAD for row in rows.values()) else PASSED


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: what vLLM makes of each case."""
    from nestquant_cli.base import markdown

    heads = ["model type", "class", "in vLLM", "largest difference, or why not"]
    cells = [[row["name"], row["built"].get("class", ""), *verdict(row)] for row in rows]
    return markdown.table(heads, cells)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of cases, or of architectures/forms.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "vllm-models.jsonl", help="JSON lines, one a case")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "vllm-models", help="folder for models")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a step")
    parser.add_argument("--keep", action="store_true", help="leave models, checkpoints and logs in --work")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
