"""The `nestquant` command: global options, the list of commands, and the exit code.

Nothing here or in a command's module imports torch or transformers at its top, so `nestquant --help` answers at once.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from . import console
from .calibrate import calibrate
from .chat import chat
from .compare import compare
from .eval_ppl import eval_ppl
from .eval_tasks import eval_tasks
from .generate import generate
from .inspect import inspect_checkpoint
from .quantize import quantize
from .tune import tune_checkpoint
from .verify import verify_checkpoint

HELP = "Quantizes language models with nested E8 lattice codes (NestQuant): weights, activations and the KV cache."

# A blank line is a line break in help.
QUICK_START = """
[bold]Quick start[/bold]

nestquant quantize demo --bits 4 --output demo-w4a4kv4

nestquant eval-ppl demo-w4a4kv4 --baseline demo --dataset demo

nestquant chat demo-w4a4kv4

nestquant quantize meta-llama/Meta-Llama-3-8B --bits 4

nestquant eval-tasks Meta-Llama-3-8B-nestquant-w4a4kv4 --tasks piqa,arc_easy

Exit codes: 0 done, 1 a quality gate failed, 2 bad usage or input.
"""

ANYWHERE = ("--debug", "--quiet")  # global options that are accepted after the command as well

app = typer.Typer(
    name="nestquant",
    help=HELP,
    epilog=QUICK_START.strip(),
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("calibrate")(calibrate)
app.command("quantize")(quantize)
app.command("tune")(tune_checkpoint)
app.command("eval-ppl")(eval_ppl)
app.command("eval-tasks")(eval_tasks)
app.command("compare")(compare)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("inspect")(inspect_checkpoint)
app.command("verify")(verify_checkpoint)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.line(f"nestquant {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show results, warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Global options. (The text of --help is the application's.)"""
    console.configure(debug, quiet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code.

    Args:
        arguments: what follows the program's name; sys.argv[1:] where None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in ANYWHERE if word in words] + [word for word in words if word not in ANYWHERE]
    sys.exit(console.run(lambda: _invoke(words or ["--help"]), debug="--debug" in words))


def _invoke(words: Sequence[str]) -> object:
    return app(words, prog_name="nestquant", standalone_mode=False)
