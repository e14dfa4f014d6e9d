"""Groups of options that several commands have in the same order: a dataclass in place of the single parameters.

Typer reads the options of a command from the signature of its function and knows no dataclasses, so `expand_groups`
gives it a signature in which each group stands as its fields.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from .config import ConfigOption
from .options import (
    Bos,
    DatasetOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Resident,
    ResidentOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SeqlenOption,
    TextFieldOption,
    WindowBosOption,
)
from .recipe_options import DEFAULT_BUDGET, MemoryOption


@dataclass(frozen=True)
class CalibrationText:
    """The windows that a model is calibrated on. `cli.config.recipe_settings` makes settings of the recipe of them.

    128 windows of 2,048 tokens are more than enough for codes and Hessians: perplexity at W4A4KV4 was 23.56 with 8
    windows and 23.58 with 32, at W4 21.04 with 8 and with 32 and 21.11 with 128, all within the noise of 0.1 to 0.4.
    """

    dataset: DatasetOption = "wikitext2"
    text_field: TextFieldOption = None
    samples: SamplesOption = 128
    seqlen: SeqlenOption = 2048
    bos: WindowBosOption = Bos.default
    seed: SeedOption = 0


@dataclass(frozen=True)
class CalibrationRun:
    """How a model is run layer by layer: memory for hidden states, dtype, device and revision."""

    memory_budget: MemoryOption = DEFAULT_BUDGET
    dtype: DtypeOption = Dtype.auto
    device: DeviceOption = "auto"
    revision: RevisionOption = None


@dataclass(frozen=True)
class EvaluationRun:
    """How a whole model is loaded and evaluated: form of its weights, dtype, seed, device, revision, settings file."""

    resident: ResidentOption = Resident.auto
    dtype: DtypeOption = Dtype.auto
    seed: SeedOption = 0
    device: DeviceOption = "auto"
    revision: RevisionOption = None
    config: ConfigOption = None

    def settings(self) -> dict[str, Any]:
        """The fields that `evaluation.measure_perplexity.PerplexityOptions` and its like have, by name."""
        named = {"resident": self.resident.value, "dtype": self.dtype.value}
        return named | {"seed": self.seed, "device": self.device, "revision": self.revision}


@dataclass(frozen=True)
class GenerationRun:
    """How a whole model is loaded to generate text: form of its weights, dtype, device, revision, settings file."""

    resident: ResidentOption = Resident.auto
    dtype: DtypeOption = Dtype.auto
    device: DeviceOption = "auto"
    revision: RevisionOption = None
    config: ConfigOption = None


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer takes it: each parameter whose type is a dataclass is replaced by the fields of that.

    `--help`, `--config` and `context.params` see the fields alone. Their order is that of the parameters.
    """
    groups: dict[str, Any] = {}
    expanded: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group: Any = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            expanded += [
                inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
                for field in fields(group)
            ]
        else:
            expanded.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded}
    return run
