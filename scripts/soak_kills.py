"""Kills a quantization many times at random moments, resumes it, and compares the result with an undisturbed run.

    python scripts/soak_kills.py --kills 20 --folder build/soak -- demo --dataset demo --samples 2 --seqlen 64

The arguments after `--` are those of `nestquant quantize`, without --output. After every kill, loading the folder must
fail because it is incomplete. At the end every file must be byte-identical to that of the undisturbed run. The exit
code is 0 if all of this holds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import read_manifest
from nestquant_cli.storage.files import sha256_file
from nestquant_cli.storage.resume import WORK

QUANTIZE = (sys.executable, "-m", "nestquant_cli", "--quiet", "quantize")


def main() -> int:
    options = parse()
    quiet, killed = options.folder / "quiet", options.folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    chance = random.Random(options.seed)
    first, each = options.first, options.each
    if not (quiet / "config.json").is_file():
        start = time.monotonic()
        first = run([*options.arguments, "--output", str(quiet)], quiet)
        each = (time.monotonic() - start - first) / (len(list(quiet.glob("model-*.safetensors"))) - 1)
        print(f"undisturbed: {time.monotonic() - start:.1f} s, the first layer after {first:.1f} s", flush=True)
    depth = len(list(quiet.glob("model-*.safetensors"))) - 1
    kills: list[dict[str, float | int | str]] = []
    while len(kills) < options.kills:
        # every other kill counts from the first new layer, so that loading does not take all of them
        working = len(kills) % 2 == 1
        share = 2 * each * (depth - finished(killed)) / (options.kills - len(kills))
        delay = chance.uniform(0.0, max(share, each)) if working else chance.uniform(0.2, first + each)
        if not kill_after(delay, [*options.arguments, "--output", str(killed)], killed if working else None):
            print(f"finished before kill {len(kills) + 1}")
            break
        kills.append({"after_seconds": round(delay, 2), "layers_done": finished(killed), "state": refused(killed)})
        print(json.dumps(kills[-1]), flush=True)
        if kills[-1]["state"] == "complete":  # it was killed after its last file
            break
    if not (killed / "config.json").is_file() or (killed / WORK).exists():
        run([*options.arguments, "--output", str(killed)], killed)
    differing = compare(quiet, killed)
    wrong = [kill for kill in kills if kill["state"] == "loads"]
    print(f"{len(kills)} kills; differing files: {differing or 'none'}; loaded while incomplete: {len(wrong)}")
    return 1 if differing or wrong or len(kills) < options.kills else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/soak"), help="working folder; an undisturbed run in it is reused"
    )
    parser.add_argument("--first", type=float, default=10.0, help="seconds to the first layer, if that run is reused")
    parser.add_argument("--each", type=float, default=1.5, help="seconds per layer, if that run is reused")
    parser.add_argument("arguments", nargs="+", help="arguments of nestquant quantize, after --")
    return parser.parse_args()


def run(arguments: list[str], folder: Path) -> float:
    """Runs to the end; returns the seconds until the first layer was written."""
    start = time.monotonic()
    process = subprocess.Popen([*QUANTIZE, *arguments], stdout=subprocess.DEVNULL)
    first = None
    while process.poll() is None:
        if first is None and finished(folder):
            first = time.monotonic() - start
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"quantize ended with {process.returncode}")
    return first or 0.0


def kill_after(delay: float, arguments: list[str], folder: Path | None) -> bool:
    """Whether the run was still active when its time was over.

    Args:
        delay: seconds until the kill.
        arguments: of nestquant quantize.
        folder: count the seconds from the first new layer in it; None counts from the start.
    """
    before = finished(folder) if folder else 0
    process = subprocess.Popen([*QUANTIZE, *arguments], stdout=subprocess.DEVNULL)
    while folder and process.poll() is None and finished(folder) <= before:
        time.sleep(0.02)
    try:
        code = process.wait(delay)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        sys.exit(f"quantize ended with {code}")
    return False


def finished(folder: Path) -> int:
    """Number of layers with a record."""
    return len(list((folder / WORK).glob("part-*.json"))) if (folder / WORK).is_dir() else 0


def refused(folder: Path) -> str:
    """How loading the folder ends."""
    if not folder.is_dir():
        return "no folder yet"
    try:
        read_manifest(folder)
    except NestQuantError as error:
        return "incomplete" if "is incomplete" in error.cause else error.cause
    return "complete" if (folder / "config.json").is_file() else "loads"


def compare(one: Path, other: Path) -> list[str]:
    """Names of files that differ or that only one folder has."""
    hashes = [{path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()} for folder in (one, other)]
    return sorted(name for name in {*hashes[0], *hashes[1]} if hashes[0].get(name) != hashes[1].get(name))


if __name__ == "__main__":
    sys.exit(main())
