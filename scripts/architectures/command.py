"""The command line of nestquant, run in this process."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

SAMPLES, SEQLEN = 2, 64  # calibration windows and their tokens; as many are scored


def nestquant(*arguments: object) -> dict[str, Any]:
    """Runs `nestquant …`: its exit code, its line of error, and the traceback of an internal error."""
    from nestquant_cli.cli import main

    said = io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main.main(["--debug", *map(str, arguments)])
        except SystemExit as leaving:
            code = leaving.code or 0
    lines = said.getvalue().splitlines()
    error = [line for line in lines if line.startswith("error:")]
    found: dict[str, Any] = {"code": code, "error": error[-1] if error else ""}
    if "internal error" in found["error"]:
        found["said"] = said.getvalue()[-1500:]
    return found


def quantize(folder: Path, output: Path, text: Path, bits: list[str]) -> dict[str, Any]:
    """`nestquant quantize` of a folder, by the options of bits."""
    chosen = (*bits, "--dataset", text, "--samples", SAMPLES, "--seqlen", SEQLEN, "--device", "cpu")
    return nestquant("quantize", folder, *chosen, "--output", output)


def plan(folder: Path, output: Path, text: Path, bits: list[str]) -> dict[str, Any]:
    """`nestquant quantize --plan` with the options of `quantize`."""
    chosen = (*bits, "--dataset", text, "--samples", SAMPLES, "--seqlen", SEQLEN, "--device", "cpu")
    return nestquant("quantize", folder, *chosen, "--output", output, "--plan")


def evaluate(folder: Path, output: Path, text: Path) -> dict[str, Any]:
    """`nestquant eval-ppl --baseline`, with its scores."""
    result = output.with_suffix(".json")
    chosen = ("--dataset", text, "--seqlen", SEQLEN, "--max-windows", SAMPLES, "--device", "cpu")
    found = nestquant("eval-ppl", output, "--baseline", folder, *chosen, "--output", result)
    return _with_numbers(found, result, ("perplexity", "baseline_perplexity", "kl_divergence"))


def inspect(output: Path) -> dict[str, Any]:
    """`nestquant inspect`, with its counts."""
    result = output.with_suffix(".inspect.json")
    found = nestquant("inspect", output, "--output", result)
    return _with_numbers(found, result, ("bits_per_weight", "quantized_weights"))


def _with_numbers(found: dict[str, Any], result: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Adds numbers of the first two levels of a report that a command wrote."""
    if found["code"]:
        return found
    report = json.loads(result.read_text())
    parts = (report, *(part for part in report.values() if isinstance(part, dict)))
    return found | {name: part[name] for part in parts for name in names if name in part}


def remedies(error: str) -> list[str]:
    """Options with a value that a line of error names, e.g. ["--kv-bits 16"]."""
    return re.findall(r"--[a-z-]+-bits \d+", error)
