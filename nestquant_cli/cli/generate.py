"""`nestquant generate`: a model continues a text, and says how fast."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, print_settings, settings
from .eval_ppl import Dtype, DtypeOption
from .options import (
    DeviceOption,
    ModelArgument,
    ReportOption,
    Resident,
    ResidentOption,
    RevisionOption,
    SeedOption,
    finite,
)

if TYPE_CHECKING:
    from ..generation.generator import Answer

PromptArgument = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="The text to continue; without it, what comes through a pipe."),
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Largest number of tokens to generate.")]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        parser=finite,
        help="0 takes the most likely token each time; above 0 tokens are drawn, more freely the higher it is.",
        show_default="the model's own",
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        parser=finite,
        help="Draw from the likeliest tokens that together have this probability.",
        show_default="the model's own",
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", help="Draw from this many of the likeliest tokens.", show_default="the model's own"),
]


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
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Continue a text; the words appear as they are generated, then tokens per second and memory.

    Standard output has the new text alone, so that it can be piped on; the figures go to standard error.
    """
    from ..base.errors import NestQuantError
    from ..evaluation.provenance import model_protocol, versions
    from ..generation.generator import load_generator
    from ..generation.sampling import NOT_GENERATED, Sampling, described
    from ..models.device import pick_device
    from ..models.source import resolve
    from ..storage.files import BYTE_ORDER_MARK, write_json

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    source = resolve(model, revision)
    place = pick_device(device)
    if prompt is None:
        if console.is_terminal(sys.stdin):
            raise NestQuantError("there is no prompt", NOT_GENERATED, f'run: nestquant generate {model} "Once upon"')
        prompt = sys.stdin.read().removeprefix(BYTE_ORDER_MARK).rstrip("\n")
    generator = load_generator(source, sampling, resident.value, dtype.value, place)
    print_settings(context)
    console.note(f"continuing with up to {max_new_tokens} tokens, {described(generator.config)}")
    if console.out.is_terminal:
        console.stream(prompt)
    answer = generator.generate(generator.tokenizer(prompt)["input_ids"], console.stream)
    console.stream("\n")
    print_answer(answer, generator.context)
    if output is not None:
        protocol = {
            "model": model_protocol(source, generator.model),
            "sampling": asdict(sampling),
            "versions": versions(),
        }
        found = {"prompt": prompt, "text": answer.text, "tokens": answer.tokens, "ending": answer.ending}
        found["figures"] = answer.statistics.as_json()
        write_json(output, found | {"protocol": protocol, "settings": settings(context)})
        console.note(f"result: {output}")
    if answer.interrupted:
        raise KeyboardInterrupt


def print_answer(answer: "Answer", context: int | None) -> None:
    """Says what an answer took, and that the context is full where that ended it."""
    if answer.ending == "context":
        console.note(f"the context of {context} tokens is full")
    console.note(answer.statistics.line(), ending=answer.ending, **answer.statistics.as_json())
