"""Damages a packed checkpoint, byte by byte and by truncation, and checks that verify and loading notice.

    python scripts/soak_corruption.py CKPT --alterations 200 --truncations 50

The script works on a copy of CKPT and undoes each damage before the next. The exit code is 1 unless all of this holds:
verify finds every damage to a file that the manifest lists; loading, by this package and by plain transformers, either
fails with an exception or gives exactly the logits of the undamaged checkpoint; errors of this package are one line and
not a traceback; nothing takes longer than a minute.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import nestquant_cli  # noqa: F401  registers the format
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.manifest import MANIFEST
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.source import load_tokenizer, resolve

IDS = torch.arange(16)[None] % 200 + 3
LONGEST = 60  # seconds for one check


def main() -> int:
    options = parse()
    chance = random.Random(options.seed)
    counts: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(options.checkpoint, Path(place) / "copy"))
        expected = logits(load_model(resolve(str(folder))))
        for number in range(options.alterations + options.truncations):
            path = pick(folder, chance)
            content = path.read_bytes()
            what, damaged = damage(content, chance, truncate=number >= options.alterations)
            path.write_bytes(damaged)
            for look in (by_verify, by_package, by_transformers):
                said = look(folder, expected)
                counts[f"{look.__name__}: {said.split(':')[0]}"] += 1
                if said.startswith("WRONG") and not (look is by_verify and path.name == MANIFEST):
                    bad.append(f"{path.name} {what}: {look.__name__}: {said}")
                    print(bad[-1], flush=True)
            path.write_bytes(content)
    for name, count in sorted(counts.items()):
        print(f"{count:5} {name}")
    print(f"{options.alterations} alterations, {options.truncations} truncations: {len(bad)} not as required")
    return 1 if bad else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("--alterations", type=int, default=200)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def pick(folder: Path, chance: random.Random) -> Path:
    """A random file; half of the time one with tensors, or config.json."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size)
    important = [path for path in files if path.suffix == ".safetensors" or path.name == "config.json"]
    return chance.choice(important if chance.random() < 0.5 else files)


def damage(content: bytes, chance: random.Random, truncate: bool) -> tuple[str, bytes]:
    """A description of the damage, and the damaged content."""
    at = chance.randrange(len(content))
    if truncate:
        return f"cut at {at} of {len(content)}", content[:at]
    new = (content[at] + chance.randrange(1, 256)) % 256
    return f"byte {at} {content[at]} -> {new}", content[:at] + bytes([new]) + content[at + 1 :]


def logits(model: Any) -> torch.Tensor:
    """Logits (1, tokens, vocabulary) of a fixed text."""
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def by_verify(folder: Path, _: torch.Tensor) -> str:
    """Runs verify, which must find every change."""
    return _look(
        lambda: "found" if not verify(folder).as_json()["ok"] else "WRONG: nothing found", refuse_foreign_errors=True
    )


def by_package(folder: Path, expected: torch.Tensor) -> str:
    """Loads as the command line does, with the tokenizer; it may only fail in one line."""

    def load() -> str:
        source = resolve(str(folder))
        load_tokenizer(source)
        return _compare(load_model(source), expected)

    return _look(load, refuse_foreign_errors=True)


def by_transformers(folder: Path, expected: torch.Tensor) -> str:
    """Loads with plain transformers; any exception counts as noticed, and so does a report of missing tensors."""

    def load() -> str:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        model, info = loaded
        # if config.json no longer says that the model is packed, transformers lists the tensors that it misses
        return "warned of missing tensors" if info["missing_keys"] else _compare(model, expected)

    return _look(load, refuse_foreign_errors=False)


def _compare(model: Any, expected: torch.Tensor) -> str:
    return "same logits" if torch.equal(logits(model), expected) else "WRONG: other logits without a word"


def _look(work: Callable[[], str], refuse_foreign_errors: bool) -> str:
    signal.alarm(LONGEST)
    try:
        return work()
    except NestQuantError as error:
        return "refused in one line" if "\n" not in str(error) else f"WRONG: several lines {error}"
    except TimeoutError:
        return "WRONG: it hangs"
    except Exception as error:
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return f"WRONG: {kind}" if refuse_foreign_errors else f"refused by {kind}"
    finally:
        signal.alarm(0)


def _too_long(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGALRM, _too_long)
    sys.exit(main())
