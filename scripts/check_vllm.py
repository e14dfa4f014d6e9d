"""Serves a packed checkpoint with vLLM, asks the server as clients do, and compares it with transformers.

    scripts/check_vllm.sh [CKPT]                 # makes the environment of `make vllm` first
    python scripts/check_vllm.py [CKPT] [--folder build/vllm]

Without CKPT the demo model is quantized to W4. A server in float32 must have the log-probabilities of transformers and
the scores of `nestquant eval-tasks`, and is killed. A server in bfloat16 then takes the same port; it must choose the
tokens of transformers, and is asked for completions and chats, many at once, in pieces, with stop strings, too long
ones, and such as are given up. One line a check. Exit code 0: all passed; 1: some failed; 2: bad use; 77: vLLM is not
installed, so nothing was checked.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from scripts.serving import compare
    from scripts.serving.answers import Asking
    from scripts.serving.checks import BAD_USE, SKIPPED, Checks, Outcome
    from scripts.serving.server import Server, ServerError, free_port
    from scripts.serving.tasks import same_scores
else:  # the script's own folder is on the path of a script that is run
    from serving import compare
    from serving.answers import Asking
    from serving.checks import BAD_USE, SKIPPED, Checks, Outcome
    from serving.server import Server, ServerError, free_port
    from serving.tasks import same_scores

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 512  # tokens
LARGEST = 1e-3  # nats, in float32
AGREEMENT = 0.95  # share of the places with the same greedy token, in bfloat16
AS_ITSELF = 1.5  # coded activations: the mean difference, to that of transformers with itself by other attention
NEEDED = ("vllm", "openai", "lm_eval", "tenacity")
SERVER = ("--max-model-len", str(CONTEXT), "--max-num-seqs", "32")


def main() -> int:
    """Checks; returns the exit code."""
    options = parse()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {sys.executable} has no {', '.join(missing)}; nothing was checked; `make vllm` installs them")
        return SKIPPED
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="nestquant"):
        print("error: vLLM does not see nestquant; nothing was checked; install this version of nestquant there again")
        return BAD_USE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(BAD_USE))  # so that no server outlives this process
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or str(quantized(options.folder / "w4"))
    if not (Path(checkpoint) / "config.json").is_file():
        print(f"error: {checkpoint} is not a checkpoint; nothing was checked; give one that `nestquant quantize` wrote")
        return BAD_USE
    checks, port = Checks(), free_port()
    try:
        in_float32(checks, checkpoint, port, options)
        in_bfloat16(checks, checkpoint, port, options)
    except ServerError as error:
        checks.add("the server runs", (False, str(error)))
    return checks.finish()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a packed checkpoint; without it, the demo model at W4")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "vllm", help="working folder")
    parser.add_argument("--wait", type=float, default=600, help="seconds in which a server must answer")
    return parser.parse_args()


def quantized(folder: Path) -> Path:
    """The demo model at W4, quantized here unless a run before has done so."""
    words = ["quantize", "demo", "--weight-bits", "4", "--dataset", "demo", "--samples", "4", "--seqlen", "512"]
    words += ["--paths", "1", "--output", str(folder)]
    if not (folder / "config.json").is_file():
        subprocess.run(
            [sys.executable, "-m", "nestquant_cli", "--quiet", *words], check=True, stdout=subprocess.DEVNULL
        )
    return folder


def in_float32(checks: Checks, checkpoint: str, port: int, options: argparse.Namespace) -> None:
    """The same log-probabilities and scores as in transformers; then the server is killed."""
    log = options.folder / "float32.log"
    with Server(checkpoint, log, port, [*SERVER, "--dtype", "float32", "--enforce-eager"]) as server:
        checks.add("a server in float32 starts", (True, f"{server.wait(options.wait):.0f} s, {capacity(server)}"))
        asking = Asking(server, CONTEXT, exact=True)
        checks.run("log-probabilities of transformers", lambda: as_transformers(asking, checkpoint))
        checks.run("16 requests at once", asking.at_once)
        checks.run("scores of eval-tasks", lambda: same_scores(server.address, checkpoint, "float32", options.folder))
        checks.run("nothing is left of a killed server", lambda: ended(server, signal.SIGKILL))


def in_bfloat16(checks: Checks, checkpoint: str, port: int, options: argparse.Namespace) -> None:
    """The same tokens as in transformers, and all that clients ask; then the server is asked to stop."""
    log = options.folder / "bfloat16.log"
    compiled = shutil.which(os.environ.get("CXX", "g++")) is not None  # torch.compile needs one
    words, how = ([], "compiled") if compiled else (["--enforce-eager"], "not compiled, since there is no g++")
    with Server(checkpoint, log, port, [*SERVER, "--dtype", "bfloat16", *words]) as server:
        checks.add(
            f"one in bfloat16 follows it, {how}", (True, f"{server.wait(options.wait):.0f} s, {capacity(server)}")
        )
        asking = Asking(server, CONTEXT, exact=False)
        checks.run("greedy tokens of transformers", lambda: same_tokens(asking, checkpoint))
        for what, check in asking.checks(has_template(checkpoint)):
            checks.run(what, check)
        checks.run("nothing is left of a stopped server", lambda: ended(server, signal.SIGTERM))


def as_transformers(asking: Asking, checkpoint: str) -> Outcome:
    """In float32. Coded activations, keys and values: as near as transformers is to itself.

    A difference of rounding moves a coded activation to the next point now and then, and that is no small step.
    """
    texts = compare.texts(checkpoint)
    own = compare.of_transformers(checkpoint, texts, "float32")
    found = compare.difference(compare.of_server(asking.client, asking.server.model, texts), own)
    if not codes_activations(checkpoint):
        return found.largest <= LARGEST, f"{found}; limit {LARGEST:g}"
    itself = compare.difference(compare.of_transformers(checkpoint, texts, "float32", "eager"), own)
    limit = AS_ITSELF * itself.mean
    return found.mean <= limit, f"{found}; mean of transformers with itself {itself.mean:.2g}"


def same_tokens(asking: Asking, checkpoint: str) -> Outcome:
    """In bfloat16. Coded activations, keys and values: as often as transformers agrees with itself, less some."""
    texts = compare.texts(checkpoint)
    own = compare.of_transformers(checkpoint, texts, "bfloat16")
    found = compare.difference(compare.of_server(asking.client, asking.server.model, texts), own)
    if not codes_activations(checkpoint):
        return found.agreement >= AGREEMENT, f"{found}; limit {AGREEMENT:.0%}"
    itself = compare.difference(compare.of_transformers(checkpoint, texts, "bfloat16", "eager"), own)
    limit = 1 - AS_ITSELF * (1 - itself.agreement)
    return found.agreement >= limit, f"{found}; transformers with itself {itself.agreement:.1%}"


def codes_activations(checkpoint: str) -> bool:
    """Whether activations, keys or values have fewer than 16 bits."""
    section = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    bits: dict[str, Any] = section.get("bits", {})
    return any(float(bits.get(part, 16)) < 16 for part in ("act", "kv"))


def has_template(checkpoint: str) -> bool:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint).chat_template is not None


def capacity(server: Server) -> str:
    tokens = server.said(r"KV cache size: ([\d,]+) tokens")
    return f"room for {tokens} tokens in 1 GiB" if tokens else "size of the cache not logged"


def ended(server: Server, number: signal.Signals) -> Outcome:
    """Whether no process of the server is left after a signal to the first one, and nothing listens.

    vLLM's engine does not see that its server was killed. As a supervisor does, the kill is then for all of them.
    """
    seconds, left = server.end(number, 60 if number == signal.SIGTERM else 10)
    if left and number == signal.SIGKILL:
        server.kill()
        return not server.healthy(), f"{', '.join(left)} outlived the first process and was killed, too"
    return not left and not server.healthy(), f"{', '.join(left) or 'no process'} after {seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
