"""`nestquant generate`: a model continues a text, and the speed is measured."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .config import print_settings, settings
from .option_groups import GenerationRun, expand_groups
from .options import ModelArgument, ReportOption, SeedOption, finite

if TYPE_CHECKING:
    from ..generation.generator import Answer, TextGenerator
    from ..generation.sampling import Sampling
    from ..models.source import Source

PromptArgument = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="Text to continue. Without it, the text is read from standard input."),
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Largest number of tokens to generate.")]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        parser=finite,
        help="Temperature of sampling. 0 always takes the most likely token; higher values give more varied text.",
        show_default="the model's own",
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        parser=finite,
        help="Sample only from the most likely tokens whose probabilities add up to this value, above 0 and up to 1.",
        show_default="the model's own",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k", help="Sample only from this many of the most likely tokens.", show_default="the model's own"
    ),
]


@expand_groups
def generate(
    context: typer.Context,
    model: ModelArgument,
    prompt: PromptArgument = None,
    max_new_tokens: NewTokensOption = 128,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    output: ReportOption = None,
    *,
    run: GenerationRun,
) -> None:
    """Continue a text. The words appear as they are generated, then tokens per second and memory.

    Standard output gets the new text only, so that it can be piped on. Speed and memory go to standard error.
    """
    from ..generation.generator import load_generator
    from ..generation.sampling import Sampling, described
    from ..models.device_choice import pick_device
    from ..models.source import resolve

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    source = resolve(model, run.revision)
    device = pick_device(run.device)
    text = prompt if prompt is not None else _read_prompt(model)
    generator = load_generator(source, sampling, run.resident.value, run.dtype.value, device)
    print_settings(context)
    console.note(f"continuing with up to {max_new_tokens} tokens, {described(generator.config)}")
    if console.out.is_terminal:
        console.stream(text)
    answer = generator.generate(generator.tokenizer(text)["input_ids"], console.stream)
    console.stream("\n")
    print_answer(answer, generator.context)
    if output is not None:
        _write(output, context, source, generator, sampling, text, answer)
    if answer.interrupted:
        raise KeyboardInterrupt


def _read_prompt(model: str) -> str:
    from ..base.errors import NestQuantError
    from ..generation.sampling import NOT_GENERATED
    from ..storage.files import BYTE_ORDER_MARK

    if console.is_terminal(sys.stdin):
        raise NestQuantError("there is no prompt", NOT_GENERATED, f'run: nestquant generate {model} "Once upon"')
    return sys.stdin.read().removeprefix(BYTE_ORDER_MARK).rstrip("\n")


def _write(
    path: Path,
    context: typer.Context,
    source: "Source",
    generator: "TextGenerator",
    sampling: "Sampling",
    prompt: str,
    answer: "Answer",
) -> None:
    """Writes the answer, what it took and what repeats it to a JSON file."""
    from ..evaluation.provenance import model_protocol, versions
    from ..storage.files import write_json

    result: dict[str, Any] = {"prompt": prompt, "text": answer.text, "tokens": answer.tokens, "ending": answer.ending}
    result["figures"] = answer.statistics.as_json()
    about_model = model_protocol(source, generator.model)
    protocol = {"model": about_model, "sampling": asdict(sampling), "versions": versions()}
    write_json(path, result | {"protocol": protocol, "settings": settings(context)})
    console.note(f"result: {path}")


def print_answer(answer: "Answer", context: int | None) -> None:
    """Prints speed and memory of an answer, and that the context of `context` tokens is full where that ended it."""
    if answer.ending == "context":
        console.note(f"the context of {context} tokens is full")
    console.note(answer.statistics.line(), ending=answer.ending, **answer.statistics.as_json())
