"""What the evaluating commands do with their gates: print those that failed, write JUnit XML, set the exit code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.process import GATE_FAILED
from . import console
from .options import writable

if TYPE_CHECKING:
    from ..evaluation.gates import Verdict

JunitOption = Annotated[
    Path | None,
    typer.Option(
        "--junit",
        metavar="FILE.xml",
        help="JUnit XML file for the quality gates, one test case each, as CI systems read it.",
        callback=writable,
    ),
]


def report_gates(verdicts: Sequence["Verdict"], junit: Path | None, command: str, model: str, seconds: float) -> None:
    """Prints the gates that failed and writes all to `junit`.

    Raises:
        typer.Exit: with exit code 1, if a gate failed.
    """
    from ..evaluation.junit import write_junit
    from ..parallel.team import launched

    if junit is not None and launched().leads:
        write_junit(junit, command, model, verdicts, seconds)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    for verdict in failed:
        console.line(f"gate failed: {verdict.figures}")
    if failed:
        raise typer.Exit(GATE_FAILED)
