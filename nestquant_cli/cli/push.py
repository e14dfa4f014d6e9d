"""`nestquant push`: a packed checkpoint to the Hugging Face Hub, with a model card."""

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .config import ConfigOption, print_settings
from .options import CheckpointArgument

RepoArgument = Annotated[
    str, typer.Argument(metavar="REPO", help="Hub id to push to, such as you/model-w4a4kv4.", show_default=False)
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="ID",
        help="Hub id of the original model, which the card names.",
        show_default="the model that the checkpoint was made from",
    ),
]
LicenseOption = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="Licence of the original model, by its identifier on the Hub, such as apache-2.0.",
        show_default="the licence on the card of the original model",
    ),
]
ResultsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--results",
        metavar="FILE.json",
        help="JSON file that eval-ppl or eval-tasks wrote with --output, for the card. Repeatable.",
    ),
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="Make the repository public after the upload. Without it, it is private.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Verify, write the model card, and stop before the upload.")
]


def push_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    repo: RepoArgument,
    base_model: BaseOption = None,
    license: LicenseOption = None,
    results: ResultsOption = None,
    public: PublicOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Verify a packed checkpoint, write its model card (README.md), and push it to a private repository on the Hub.

    The card has the recipe, the real bits, the results of --results with their protocol and commands, and the licence
    of the original model.
    """
    from ..sharing.push import CARD, PushOptions, push

    options = PushOptions(checkpoint, repo, base_model, license, tuple(results or ()), public, dry_run)
    where = "writing its model card" if dry_run else f"pushing it to {repo}, {'public' if public else 'private'}"
    console.note(f"verifying {checkpoint}, then {where}")
    print_settings(context)
    files = push(options)
    if dry_run:
        console.line(f"{len(files)} files would be pushed to {repo}")
        console.print_ending(checkpoint / CARD, "push", checkpoint, repo)
        return
    console.line(f"result: {repo} on the Hugging Face Hub, {len(files)} files")
    console.print_ending(None, "generate", repo, "Once upon a time")
