"""What the evaluating commands do with their gates: say which failed, write them as JUnit XML, set the exit code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import writable

if TYPE_CHECKING:
    from ..evaluation.gates import Verdict

JunitOption = Annotated[
    Path | None,
    typer.Option(
        "--junit",
        metavar="FILE.xml",
        help="Also write the gates as JUnit XML, one test case each.",
        callback=writable,
    ),
]


def report_gates(verdicts: Sequence["Verdict"], junit: Path | None, command: str, model: str, seconds: float) -> None:
    """Prints the gates that failed and writes all to `junit`.

    Raises:
        typer.Exit: with the code of a failed gate, if one failed.
    """
    from ..evaluation.junit import write_junit
    from ..parallel.team import launched

    if junit is not None and launched().leads:
        write_junit(junit, command, model, verdicts, seconds)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    for verdict in failed:
        console.line(f"gate failed: {verdict.figures}")
    if failed:
        raise typer.Exit(console.GATE_FAILED)
