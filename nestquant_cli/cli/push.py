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
        "--base-model", metavar="ID", help="Hub id of the original model.", show_default="what it was made from"
    ),
]
LicenseOption = Annotated[
    str | None,
    typer.Option("--license", help="Licence of the base model, as on the Hub.", show_default="that of its card"),
]
ResultsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--results", metavar="FILE.json", help="JSON file that eval-ppl or eval-tasks wrote with --output; repeatable."
    ),
]
PublicOption = Annotated[bool, typer.Option("--public", help="Make the repository public after the upload.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Verify, write the model card, and stop.")]


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
    """Verify a packed checkpoint, write its model card (README.md), and push it to the Hugging Face Hub, private.

    The card has recipe, real bits, what --results measured by which protocol and commands, and the base model's
    licence.
    """
    from ..sharing.push import CARD, PushOptions, push

    options = PushOptions(checkpoint, repo, base_model, license, tuple(results or ()), public, dry_run)
    where = "writing its model card" if dry_run else f"pushing it to {repo}, {'public' if public else 'private'}"
    console.note(f"verifying {checkpoint}, then {where}")
    print_settings(context)
    files = push(options)
    if dry_run:
        console.line(f"{len(files)} files would be pushed to {repo}")
        console.ending(checkpoint / CARD, "push", checkpoint, repo)
        return
    console.line(f"result: {repo} on the Hugging Face Hub, {len(files)} files")
    console.ending(None, "generate", repo, "Once upon a time")
