"""`nestquant chat`: a conversation with a model, on a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.process import BAD_INPUT
from ..storage.files import BYTE_ORDER_MARK
from . import console
from .config import print_settings
from .generate import NewTokensOption, TemperatureOption, TopKOption, TopPOption, print_answer
from .option_groups import GenerationRun, expand_groups
from .options import ModelArgument, SeedOption

if TYPE_CHECKING:
    from ..generation.conversation import Conversation

SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="System message at the start of the conversation."),
]
COMMANDS = "/reset forgets the conversation, /exit leaves"
PROMPT = "> "


@expand_groups
def chat(
    context: typer.Context,
    model: ModelArgument,
    system: SystemOption = None,
    max_new_tokens: NewTokensOption = 512,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    *,
    run: GenerationRun,
) -> None:
    """Talk with a model through its chat template. /reset starts a new conversation, /exit leaves.

    Ctrl-C ends an answer, Ctrl-D the conversation. Tokens per second and memory follow each answer. When messages come
    through a pipe, each line is a message and standard output gets the answers only. A message that the model cannot
    take is left out, and the exit code at the end is 2.
    """
    from ..generation.conversation import Conversation
    from ..generation.generator import load_generator
    from ..generation.sampling import Sampling, described
    from ..models.device_choice import pick_device
    from ..models.source import resolve

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    source = resolve(model, run.revision)
    generator = load_generator(source, sampling, run.resident.value, run.dtype.value, pick_device(run.device))
    conversation = Conversation(generator, system)
    print_settings(context)
    console.note(f"talking with {source.name}, {described(generator.config)}; {COMMANDS}")
    typed = console.is_terminal(sys.stdin)
    refused = 0
    for number, message in _messages(typed):
        if message == "/exit":
            break
        if message == "/reset":
            conversation.reset()
            console.note("the conversation is forgotten")
        elif message.startswith("/") and " " not in message:
            console.note(f"there is no {message}; {COMMANDS}")
        else:
            refused += not _answer(conversation, message, number)
    if refused and not typed:
        raise typer.Exit(BAD_INPUT)


def _answer(conversation: "Conversation", message: str, number: int | None) -> bool:
    """Prints the model's answer. A message that the model cannot take is reported, and the conversation continues.

    Args:
        number: line number of a message from a pipe; None for one that was typed.

    Returns:
        whether the message was answered.

    Raises:
        KeyboardInterrupt: the answer to a line of a pipe was interrupted.
    """
    from ..base.errors import NestQuantError

    try:
        answer = conversation.say(message, console.stream)
    except NestQuantError as error:
        console.print_error(str(error) if number is None else f"line {number}: {error}")
        return False
    console.stream("\n")
    print_answer(answer, conversation.generator.context)
    if answer.interrupted and number is not None:
        raise KeyboardInterrupt
    return True


def _messages(typed: bool) -> Iterator[tuple[int | None, str]]:
    """Yields the messages that are not empty: lines of a pipe with their numbers, or typed ones with None."""
    if not typed:
        lines = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in sys.stdin)
        yield from ((number, text) for number, text in enumerate(lines, 1) if text)
        return
    import readline  # noqa: F401  gives input() its line editing

    while True:
        try:
            message = input(PROMPT).strip()
        except EOFError:
            console.stream("\n")
            return
        if message:
            yield None, message
