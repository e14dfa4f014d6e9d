"""Takes a tiny random model of every architecture of transformers through nestquant: which work, which are refused.

    python scripts/check_architectures.py --out build/architectures.jsonl               # all; most of an hour of a core
    python scripts/check_architectures.py --out build/some.jsonl --only llama,gemma3

Every class that transformers maps to causal language models is tried, and the usual models of images with text. A case
is quantized at 4 bits (whole, else with 16-bit keys and values, else its weights alone), scored, verified, inspected,
loaded by from_pretrained and generated from; and again at 8 bits, where errors of rounding are small and errors of
structure are not. One JSON line a case; cases that --out has already are left out, so that a run can be resumed.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch and transformers read them: one thread a process, and nothing from the network.
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
SETTINGS |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

if TYPE_CHECKING:
    from scripts.architectures.configurations import all_cases
    from scripts.architectures.run import in_children, preload, run_case
    from scripts.architectures.text import LICENSE
    from scripts.architectures.verdicts import Verdict, line_of
else:  # the script's own folder is on the path of a script that is run
    from architectures.configurations import all_cases
    from architectures.run import in_children, preload, run_case
    from architectures.text import LICENSE
    from architectures.verdicts import Verdict, line_of


def main() -> None:
    """Runs the cases that are wanted and not done yet."""
    arguments = parse()
    wanted = arguments.only.split(",") if arguments.only else all_cases()
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    done = {json.loads(line)["name"] for line in lines}
    todo = [name for name in wanted if name not in done]
    print(f"{len(todo)} of {len(wanted)} cases to run")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    preload()
    split(todo, arguments.workers, lambda name: one(name, arguments))


def one(name: str, arguments: argparse.Namespace) -> None:
    """Runs a case and appends its row."""
    row = run_case(name, arguments.work, arguments.text, in_children(arguments.timeout), arguments.keep)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(line_of(row, Verdict.of(row)), flush=True)


def split(names: list[str], workers: int, function: Callable[[str], None]) -> None:
    """Calls `function` with each name, in `workers` processes that are forked off."""
    if workers == 1:
        for name in names:
            function(name)
        return
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            split(names[number::workers], 1, function)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a case")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("build/architectures"), help="folder for models")
    parser.add_argument("--text", type=Path, default=LICENSE, help="text that calibrates and is scored")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--timeout", type=float, default=240, help="seconds of a stage")
    parser.add_argument("--keep", action="store_true", help="leave models and checkpoints in --work")
    return parser.parse_args()


if __name__ == "__main__":
    main()
