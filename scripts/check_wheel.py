"""Installs the wheel in a new environment, as a user does, and uses it there.

    python scripts/check_wheel.py [--folder build/wheel]

The environment has the dependencies of the package, in the versions of constraints.txt, and none of the extras. The
script checks that the wheel holds the whole package and nothing else, and that the command line answers. From another
working folder it quantizes a tiny model, verifies and scores it, loads it with `from_pretrained`, and continues a text.
Then it does the same with the installed package and the user's home read-only; the text must be the same. It takes some
minutes and needs the network.
"""

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nestquant_cli"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("compressed_tensors", "hypothesis", "mypy", "pytest", "ruff", "xdist")  # development tools, not for users
GENERATE = """
import os, sys
import nestquant_cli
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "site-packages" in nestquant_cli.__file__, nestquant_cli.__file__
model, tokenizer = (auto.from_pretrained("packed") for auto in (AutoModelForCausalLM, AutoTokenizer))
ids = model.generate(**tokenizer("To round a vector", return_tensors="pt"), max_new_tokens=12, do_sample=False)
print(ids.tolist())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheel", help="working folder, emptied first")
    folder = parser.parse_args().folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    wheel = build(folder / "dist")
    passed("the wheel holds the package and nothing else", check_contents(wheel))
    python = install(wheel, folder / "venv")
    check_use(python, folder / "elsewhere")


def passed(what: str, detail: str = "") -> None:
    print(f"ok: {what}" + (f" ({detail})" if detail else ""), flush=True)


def run(*words: object, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a command. If the command fails, the script prints all its output and ends."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NUMBA", "VIRTUAL"))}
    own |= {"HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([*map(str, words)], cwd=cwd, env=own, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}failed with {done.returncode}: {' '.join(map(str, words))}")
    return done.stdout


def expect(true: bool, otherwise: str) -> None:
    if not true:
        sys.exit(f"failed: {otherwise}")


def build(folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> str:
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = run("git", "ls-files", PACKAGE).splitlines() if (ROOT / ".git").exists() else []
    source = files or [
        str(path.relative_to(ROOT))
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    expect(found == {*source}, f"the wheel and the source differ in {sorted(found ^ {*source})}")
    return f"{len(found)} files"


def install(wheel: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", CONSTRAINTS]
    # First and pinned, since a loose requirement lets pip try several builds, each of gigabytes.
    run(*pip, next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")))
    run(*pip, wheel)
    run(python, "-m", "pip", "check")
    program = f"import importlib.util\nprint(*(name for name in {EXTRAS} if importlib.util.find_spec(name)))"
    there = run(python, "-c", program).split()
    expect(not there, f"the environment has {there}, which users have not")
    passed("it installs without the extras")
    return python


def check_use(python: Path, folder: Path) -> None:
    folder.mkdir()
    command = python.parent / "nestquant"
    expect("quantize" in run(command, "--help", cwd=folder), "--help does not name `quantize`")
    passed("the command answers", run(command, "--version", cwd=folder).strip())

    sizes = ["--layers", 2, "--width", 64, "--inner", 128, "--head", 16, "--vocabulary", 300]
    run(python, ROOT / "scripts" / "make_model.py", folder / "model", *sizes, cwd=folder)
    shutil.copy(ROOT / "README.md", folder / "text.txt")
    text = ["--dataset", "text.txt", "--seqlen", 64]
    run(command, "quantize", "model", *text, "--samples", 4, "--bits", 4, "--output", "packed", cwd=folder)
    run(command, "verify", "packed", "--original", "model", cwd=folder)
    run(command, "eval-ppl", "packed", *text, "--max-windows", 2, cwd=folder)
    run(command, "generate", "packed", "To round a vector", "--max-new-tokens", 4, cwd=folder)
    passed("a model is quantized, verified, scored and continues a text")
    first = run(python, "-c", GENERATE, cwd=folder)
    passed("from_pretrained loads it")

    protect(python)
    expect(
        run(python, "-c", GENERATE, cwd=folder, HOME=os.devnull) == first, "a read-only installation writes other text"
    )
    passed("it does the same where neither the installation nor HOME can be written")


def protect(python: Path) -> None:
    """Makes the package's folders for compiled code unusable, also for root, who may write anywhere."""
    for cache in python.parents[1].rglob(f"{PACKAGE}/**/__pycache__"):
        shutil.rmtree(cache)
        cache.touch()  # a file where the folder would be
    run("chmod", "-R", "a-w", python.parents[1] / "lib")


if __name__ == "__main__":
    main()
