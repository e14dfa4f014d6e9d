"""The `nestquant` command: global options, the list of commands, and the exit code.

Nothing here or in a command's module imports torch or transformers at its top, so `nestquant --help` answers at once.
"""

import itertools
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..base.process import repair_streams
from ..base.version import __version__
from . import console
from .calibrate import calibrate
from .chat import chat
from .compare import compare
from .eval_ppl import eval_ppl
from .eval_tasks import eval_tasks
from .export import export_checkpoint
from .generate import generate
from .inspect import inspect_checkpoint
from .log import LogFormat
from .push import push_checkpoint
from .quantize import quantize
from .report import report_checkpoint
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

FLAGS, VALUED = ("--debug", "--quiet"), "--log-format"  # global options that may also follow the command

app = typer.Typer(
    name="nestquant",
    help=HELP,
    epilog=QUICK_START.strip(),
    rich_markup_mode="rich",
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
app.command("report")(report_checkpoint)
app.command("push")(push_checkpoint)
app.command("export")(export_checkpoint)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.line(f"nestquant {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only results, warnings and errors.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", help="Format of the log on standard error: text, or json with one object per line."
        ),
    ] = LogFormat.text,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Global options. (The text of --help is the application's.)"""
    console.configure(debug, quiet, log_format)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code.

    Args:
        arguments: what follows the program's name; sys.argv[1:] where None.
    """
    repair_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = _global_first(words)
    sys.exit(console.run(lambda: _invoke(words or ["--help"]), debug="--debug" in words))


def _global_first(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the global options moved before the command."""
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in FLAGS or word.startswith(f"{VALUED}="):
            first.append(word)
        elif word == VALUED:
            first += [word, *itertools.islice(remaining, 1)]
        else:
            rest.append(word)
    return first + rest


def _invoke(words: Sequence[str]) -> object:
    return app(words, prog_name="nestquant", standalone_mode=False)
