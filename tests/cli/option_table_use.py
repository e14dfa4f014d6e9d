"""The part of the table of options, see option_table.py, with the commands that use a model or a checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.cli.option_case import (
    BASELINE,
    CHECKPOINT,
    DATASET,
    DEVICE,
    DTYPE,
    FIELD,
    FOLDER,
    MODEL,
    RESIDENT,
    RESULT,
    REVISION,
    SAMPLING,
    SEED,
    SEQLEN,
    SPLIT,
    WINDOWS,
    Case,
    Command,
    FreeText,
    at,
)


def _prompt(arguments: Mapping[str, Any]) -> Any:
    return arguments["self"].tokenizer.decode(arguments["ids"])


USE: dict[str, Command] = {
    "generate": Command(
        "generation.generator:load_generator",
        {"model": "{model}", "prompt": "the lattice", "max_new_tokens": 1},
        {
            "model": MODEL,
            "prompt": Case(
                "holds every point",
                _prompt,
                FreeText("the: lattice, {x}", "a text to continue"),
                acts="generation.generator:TextGenerator.generate",
            ),
            "output": RESULT,
            **SAMPLING,
            "revision": REVISION,
        },
    ),
    "chat": Command(
        "generation.generator:load_generator",
        {"model": "{talking}"},
        {
            "model": replace(MODEL, value="{talking}"),
            "system": Case(
                "be brief",
                "system",
                FreeText("no, 1: {x}\n%s", "a message to the model"),
                acts="generation.conversation:Conversation",
            ),
            **SAMPLING,
            "revision": REVISION,
        },
    ),
    "inspect": Command(
        "checkpoint.inspect:inspect",
        {"checkpoint": "{packed}"},
        {
            "checkpoint": CHECKPOINT,
            "matrices": Case(
                True,
                "columns.0",
                expected="matrix",
                acts="cli.console:table",
                when=lambda arguments: arguments["columns"][0] == "matrix",
            ),
            "kernels": Case(True, "folder", expected="{packed}", acts="checkpoint.kernel_choice:kernel_choice"),
            "device": Case(
                "cpu",
                "device",
                "toaster",
                acts="checkpoint.kernel_choice:kernel_choice",
                together=(("kernels", True),),
            ),
            "output": RESULT,
        },
    ),
    "verify": Command(
        "checkpoint.verify:verify",
        {"checkpoint": "{packed}"},
        {"checkpoint": CHECKPOINT, "original": Case("{model}", "original", "no/such/model"), "output": RESULT},
    ),
    "report": Command(
        "report.write:make_report",
        {"checkpoint": "{packed}", "output": "{new}"},
        {
            "checkpoint": replace(CHECKPOINT, at="options.folder"),
            "output": replace(FOLDER, at="options.output"),
            **at(
                "options.scoring",
                baseline=BASELINE,
                dataset=replace(DATASET, together=(("baseline", "{model}"),)),
                split=replace(SPLIT, together=(("baseline", "{model}"), ("dataset", "demo"))),
                text_field=replace(FIELD, together=(("baseline", "{model}"), ("dataset", "demo"))),
                seqlen=SEQLEN,
                max_windows=WINDOWS,
                resident=RESIDENT,
                dtype=DTYPE,
                seed=SEED,
                device=replace(DEVICE, at="", acts=None, together=(("baseline", "{model}"),)),
            ),
            "prompt": Case("holds every point", "options.prompt", FreeText("no, 1: {x}\n%s", "a text to continue")),
            "max_new_tokens": Case(7, "options.max_new_tokens", 0),
        },
    ),
    "push": Command(
        "sharing.push:push",
        {"checkpoint": "{packed}", "repo": "you/model", "dry_run": True},
        at(
            "options",
            checkpoint=Case("{packed}", "options.folder", "{full}"),
            repo=Case("me/model", "", "not a repository"),
            base_model=Case("org/base", "options.base", "not a repository"),
            license=Case("mit", "", ""),
            results=Case(["{recipe}", "{recipe2}"], "", ["{new}"]),
            public=Case(True, ""),
            dry_run=Case(True, ""),
        ),
    ),
    "export": Command(
        "export.export:export",
        {"checkpoint": "{packed}", "output": "{new}"},
        {
            "checkpoint": CHECKPOINT,
            "output": replace(FOLDER, at="output"),
            "format": Case("compressed-tensors", "folder", "gguf", "{packed}", only=True),
        },
    ),
}
