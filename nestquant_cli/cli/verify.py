"""`nestquant verify`: checks every tensor of a packed checkpoint."""

from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, print_settings, settings
from .options import MODEL_FORMS, CheckpointArgument, ReportOption
from .staying import print_staying

if TYPE_CHECKING:
    from ..checkpoint.findings import VerifyReport

OriginalOption = Annotated[
    str | None,
    typer.Option(
        "--original",
        metavar="MODEL",
        help="Model that the checkpoint was quantized from. If given, the errors of its weights are computed again and "
        f"compared with the recorded ones. Takes {MODEL_FORMS}.",
    ),
]
MOST_SHOWN = 20  # problems that are printed; the JSON file has all of them


def verify_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    original: OriginalOption = None,
    output: ReportOption = None,
    config: ConfigOption = None,
) -> None:
    """Check hash, shape, code range and recorded error of every tensor of a packed checkpoint."""
    from ..checkpoint.verify import verify
    from ..storage.files import write_json

    console.note(f"checking every file and tensor of {checkpoint}{f' against {original}' if original else ''}")
    print_settings(context)
    report = verify(checkpoint, original)
    if output is not None:
        write_json(output, report.as_json() | {"settings": settings(context)})
    _print(report)
    report.refuse()
    console.print_ending(output, "eval-ppl", checkpoint)


def _print(report: "VerifyReport") -> None:
    rows: list[tuple[object, ...]] = [
        ("files", f"{report.files:,}", f"{report.bytes:,} bytes, size and SHA-256"),
        ("tensors", f"{report.tensors:,}", "name, dtype, shape and SHA-256"),
        ("matrices", f"{report.matrices:,}", f"{report.words:,} words in range, row scales, β histograms"),
    ]
    for kind, errors in (("recorded", report.recorded), ("recomputed", report.recomputed)):
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            mean = sum(errors.values()) / len(errors)
            rows.append((f"{kind} errors", f"{len(errors):,}", f"mean {mean:.5f}, worst {errors[worst]:.5f} ({worst})"))
    console.table(["checked", "sound", "what"], rows, title=f"{report.folder}")
    print_staying(report.staying)
    if report.unlisted:
        console.line(f"not part of the checkpoint: {', '.join(report.unlisted)}")
    if len(report.problems) > 1:
        for problem in report.problems[:MOST_SHOWN]:
            console.line(f"problem: {problem}")
        if len(report.problems) > MOST_SHOWN:
            console.line(f"… and {len(report.problems) - MOST_SHOWN} more")
