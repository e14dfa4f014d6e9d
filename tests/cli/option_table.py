"""Where every option of every command acts: the table that test_options.py walks along.

A new option needs one line here: a value that is not its default, where it is among the arguments of the function of
the library that has to get it, and a value that has to be refused. Names in braces are places that test_options.py
makes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nestquant_cli.evaluation.gates import Verdict
from nestquant_cli.evaluation.tasks import TaskReport
from tests.cli.option_case import (
    ANYTHING,
    BASELINE,
    BITS_OF_INPUTS,
    BOS,
    BUDGET,
    CHECKPOINT,
    DATASET,
    DEVICE,
    DTYPE,
    FOLDER,
    JUNIT,
    MODEL,
    RESIDENT,
    RESULT,
    REVISION,
    SAMPLES,
    SAMPLING,
    SEED,
    SEQLEN,
    SPLIT,
    TASKS,
    TEXT_OF_RECIPE,
    WINDOWS,
    Case,
    Command,
    at,
)


def _prompt(arguments: Mapping[str, Any]) -> Any:
    return arguments["self"].tokenizer.decode(arguments["ids"])


COMMANDS: dict[str, Command] = {
    "calibrate": Command(
        "quantization.pipeline:calibrate",
        {"model": "{model}", "output": "{new}"},
        {
            "model": MODEL,
            "output": FOLDER,
            **BITS_OF_INPUTS,
            **TEXT_OF_RECIPE,
            "memory_budget": BUDGET,
            "device": DEVICE,
            "revision": REVISION,
        },
    ),
    "quantize": Command(
        "quantization.tuned:quantize_and_tune",
        {"model": "{model}", "output": "{new}"},
        {
            "model": MODEL,
            "output": FOLDER,
            "bits": Case(3, "recipe.kv_bits", "nan"),
            **BITS_OF_INPUTS,
            **TEXT_OF_RECIPE,
            **at(
                "recipe",
                weight_bits=Case(3.5, "", 9),
                method=Case("integer", "", "magic"),
                rotation=Case("learned", "", "magic"),
                feedback=Case("none", "", "magic"),
                paths=Case(5, "", 65),
                qa=Case(False, ""),
                centering=Case(False, ""),
                sequential=Case(True, "", together=(("weight_bits", 4), ("act_bits", 16), ("kv_bits", 16))),
                damping=Case(0.5, "", "nan"),
                allocation=Case("mixed", "", "magic"),
                tune=Case(True, "", expected={}),
            ),
            "calibration": Case("{full}", "calibration", "{new}"),
            "plan": Case(True, "source.path", expected="{model}", acts="quantization.plan:make_plan"),
            "resume": Case(False, "resume"),
            "memory_budget": replace(BUDGET, at="limits.budget"),
            "device": DEVICE,
            "revision": REVISION,
        },
    ),
    "tune": Command(
        "tuning.run:tune",
        {"checkpoint": "{packed}", "model": "{model}", "output": "{new}"},
        {
            "checkpoint": replace(CHECKPOINT, at="checkpoint"),
            "model": replace(MODEL, at="original.path"),
            "output": FOLDER,
            "dataset": replace(DATASET, at="dataset"),
            **at(
                "settings",
                steps=Case(3, "", 0),
                seqlen=SEQLEN,
                batch=Case(2, "", 0),
                rate=Case(0.5, "", "nan"),
                held_out=Case(3, "", 0),
                checks=Case(3, "", 0),
            ),
            "seed": replace(SEED, at="seed"),
            "resume": Case(False, "resume"),
            "device": DEVICE,
            "revision": REVISION,
        },
    ),
    "eval-ppl": Command(
        "evaluation.report:measure_perplexity",
        {"model": "{model}", "dataset": "{text}", "seqlen": 32, "max_windows": 1},
        at(
            "options",
            model=Case("{model}", "", "no/such/model"),
            dataset=DATASET,
            split=replace(SPLIT, together=(("dataset", "demo"),)),
            seqlen=SEQLEN,
            max_windows=WINDOWS,
            bos=BOS,
            baseline=BASELINE,
            output=RESULT,
            fail_above=Case(7.5, "most", "nan", acts="evaluation.gates:judge_perplexity"),
            junit=replace(JUNIT, together=(("fail_above", 7.5),)),
            resident=RESIDENT,
            dtype=DTYPE,
            seed=SEED,
            device=DEVICE,
            revision=replace(REVISION, at="", acts=None),
        ),
    ),
    "eval-tasks": Command(
        "evaluation.tasks:measure_tasks",
        {"model": "{model}", "tasks": "sample_piqa", "include_path": str(TASKS), "limit": 1},
        at(
            "options",
            model=Case("{model}", "", "no/such/model"),
            tasks=Case("sample_piqa,sample_arc_easy", "", ",", ["sample_piqa", "sample_arc_easy"]),
            num_fewshot=Case(1, "", -1),
            limit=Case(0.5, "", "nan"),
            include_path=Case(str(TASKS), "", "{new}"),
            batch_size=Case(3, "", 0),
            output=RESULT,
            fail_below=Case(["sample_piqa=0.5", "sample_piqa.acc_norm=0.25"], "", ["sample_piqa=nan"]),
            junit=replace(JUNIT, together=(("fail_below", ["sample_piqa=0.5"]),)),
            resident=RESIDENT,
            dtype=DTYPE,
            seed=SEED,
            device=DEVICE,
            revision=replace(REVISION, at="", acts=None),
        ),
        TaskReport({}, "", {"seconds": 1.0}, [Verdict("sample_piqa acc >= 0.5", "", True)]),
    ),
    "compare": Command(
        "comparison.run:compare",
        {"model": "{model}", "recipes": "{recipe}", "dataset": "demo", "output": "{new}"},
        at(
            "options",
            model=Case("{model}", "options.model.path", "no/such/model"),
            recipes=Case("{recipe},{recipe2}", "options.entries.1.name", "{new}", "recipe2"),
            against=Case("recipe", "", "magic"),
            output=replace(FOLDER, at="options.folder"),
            dataset=Case(
                "{text}", "options.entries.0.recipe.dataset", "no-such-text", together=(("eval_dataset", "demo"),)
            ),
            samples=replace(SAMPLES, at="options.entries.0.recipe.samples"),
            seqlen=SEQLEN,
            eval_dataset=Case("{text}", "options.dataset", "no-such-text"),
            split=SPLIT,
            max_windows=WINDOWS,
            bos=BOS,
            tasks=Case("sample_piqa", "", ",", ["sample_piqa"]),
            limit=Case(0.5, "", "nan"),
            include_path=Case(str(TASKS), "", "{new}", together=(("tasks", "sample_piqa"),)),
            resident=RESIDENT,
            dtype=DTYPE,
            seed=replace(SEED, at="options.entries.0.recipe.seed"),
            device=replace(DEVICE, at="options.device", acts=None),
            revision=REVISION,
        ),
    ),
    "generate": Command(
        "generation.writer:open_writer",
        {"model": "{model}", "prompt": "the lattice", "max_new_tokens": 1},
        {
            "model": MODEL,
            "prompt": Case("holds every point", _prompt, ANYTHING, acts="generation.writer:Writer.write"),
            "output": RESULT,
            **SAMPLING,
            "revision": REVISION,
        },
    ),
    "chat": Command(
        "generation.writer:open_writer",
        {"model": "{talking}"},
        {
            "model": replace(MODEL, value="{talking}"),
            "system": Case("be brief", "system", ANYTHING, acts="generation.conversation:Conversation"),
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
            "output": RESULT,
        },
    ),
    "verify": Command(
        "checkpoint.verify:verify",
        {"checkpoint": "{packed}"},
        {"checkpoint": CHECKPOINT, "original": Case("{model}", "original", "no/such/model"), "output": RESULT},
    ),
    "report": Command(
        "report.run:make_report",
        {"checkpoint": "{packed}", "output": "{new}"},
        {
            "checkpoint": replace(CHECKPOINT, at="options.folder"),
            "output": replace(FOLDER, at="options.output"),
            **at(
                "options.scoring",
                baseline=BASELINE,
                dataset=replace(DATASET, together=(("baseline", "{model}"),)),
                split=replace(SPLIT, together=(("baseline", "{model}"), ("dataset", "demo"))),
                seqlen=SEQLEN,
                max_windows=WINDOWS,
                resident=RESIDENT,
                dtype=DTYPE,
                seed=SEED,
                device=replace(DEVICE, at="", acts=None, together=(("baseline", "{model}"),)),
            ),
            "prompt": Case("holds every point", "options.prompt", ANYTHING),
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
        "export.run:export",
        {"checkpoint": "{packed}", "output": "{new}"},
        {
            "checkpoint": CHECKPOINT,
            "output": replace(FOLDER, at="output"),
            "format": Case("compressed-tensors", "folder", "gguf", "{packed}", only=True),
        },
    ),
}
GLOBAL = {
    "debug": Case(True, "debug"),
    "quiet": Case(True, "quiet"),
    "log_format": Case("json", "form", "xml"),
    "version": Case(True, "text", expected=lambda text: str(text).startswith("nestquant "), acts="cli.console:line"),
}
