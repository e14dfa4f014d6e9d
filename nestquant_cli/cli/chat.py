"""`nestquant chat`: a conversation with a model, on a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, tell_settings
from .eval_ppl import Dtype, DtypeOption
from .generate import NewTokensOption, TemperatureOption, TopKOption, TopPOption
from .options import DeviceOption, ModelArgument, Resident, ResidentOption, RevisionOption, SeedOption

if TYPE_CHECKING:
    from ..generation.conversation import Conversation

SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message before all others.")]
COMMANDS = "/reset forgets the conversation, /exit leaves"
PROMPT = "> "


def chat(
    context: typer.Context,
    model: ModelArgument,
    system: SystemOption = None,
    max_new_tokens: NewTokensOption = 512,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk with a model by its chat template; it remembers what was said. /reset forgets it, /exit leaves.

    Ctrl-C ends an answer, Ctrl-D the conversation. Through a pipe every line is a message, and standard output has the
    answers alone. Tokens per second and memory follow each answer.
    """
    from ..generation.conversation import Conversation
    from ..generation.settings import Sampling, described
    from ..generation.writer import open_writer
    from ..models.device import pick_device
    from ..models.source import resolve

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    source = resolve(model, revision)
    writer = open_writer(source, sampling, resident.value, dtype.value, pick_device(device))
    conversation = Conversation(writer, system)
    tell_settings(context)
    console.note(f"talking with {source.name}, {described(writer.config)}; {COMMANDS}")
    for message in _messages(sys.stdin.isatty()):
        if message == "/exit":
            break
        if message == "/reset":
            conversation.reset()
            console.note("the conversation is forgotten")
        elif message.startswith("/") and " " not in message:
            console.note(f"there is no {message}; {COMMANDS}")
        else:
            _answer(conversation, message, sys.stdin.isatty())


def _answer(conversation: "Conversation", message: str, typed: bool) -> None:
    from ..errors import NestQuantError

    try:
        answer = conversation.say(message, console.stream)
    except NestQuantError as error:
        if not typed:
            raise
        console.print_error(str(error))
        return
    console.stream("\n")
    console.note(answer.figures.line(), **answer.figures.as_json())
    if answer.interrupted and not typed:
        raise KeyboardInterrupt


def _messages(typed: bool) -> Iterator[str]:
    """Messages as they come: lines of a pipe, or typed ones; empty ones are passed over."""
    if not typed:
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    import readline  # noqa: F401  gives input() its line editing

    while True:
        try:
            message = input(PROMPT).strip()
        except EOFError:
            console.stream("\n")
            return
        if message:
            yield message
