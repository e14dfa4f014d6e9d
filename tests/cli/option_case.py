"""What is expected of one option, and the options that several commands share; option_table.py has all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TASKS = Path(__file__).resolve().parents[1] / "tasks"


@dataclass(frozen=True)
class FreeText:
    """As `nonsense`: the option takes any text, so there is nothing to refuse, and any text has to arrive unchanged.

    Attributes:
        odd: a text that a parser could take for something else.
        reason: what the text is, so that all of it is valid.
    """

    odd: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One option.

    Attributes:
        value: not the default. True and False choose between the two names of a switch; a list repeats the option.
        at: where it is among the arguments of the function, "options.seqlen", or a function of all of them.
        nonsense: a value that is refused with exit code 2, or a `FreeText`. A switch needs none.
        expected: what has to arrive, where that is not `value`: a value, or a function that says whether it is right.
        acts: the function that gets it, "package.module:name"; None is that of the command.
        when: which of its calls is meant, by its arguments.
        together: other options that this one needs.
        only: `value` is the only one that the option takes so far.
    """

    value: Any
    at: str | Callable[[Mapping[str, Any]], Any]
    nonsense: Any = None
    expected: Any = None
    acts: str | None = None
    when: Callable[[Mapping[str, Any]], bool] = lambda arguments: True
    together: tuple[tuple[str, Any], ...] = ()
    only: bool = False


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        acts: the function of the library that it calls.
        base: what it needs, by the names of its options and arguments.
        cases: every option and argument by name.
        result: what the function gives, where an option acts after it and a true call would take long.
    """

    acts: str
    base: dict[str, Any]
    cases: dict[str, Case]
    result: Any = None


def at(prefix: str, **cases: Case) -> dict[str, Case]:
    """The cases where they are `prefix.name` of the function."""
    return {name: case if case.at else replace(case, at=f"{prefix}.{name}") for name, case in cases.items()}


DEVICE = Case("cpu", "device", "toaster", acts="models.device_choice:pick_device")
DTYPE = Case("float32", "", "float31")
RESIDENT = Case("packed", "", "int9")
SEED = Case(5, "", -1)
SEQLEN = Case(48, "", 1)
SAMPLES = Case(3, "", 0)
DATASET = Case("{text}", "", "no-such-text")
SPLIT = Case("train", "", "no-such-part")
WINDOWS = Case(3, "", 0)
BOS = Case("each", "", "some")
FIELD = Case("body", "", "")
BASELINE = Case("{other}", "", "no/such/model")
BUDGET = Case("500MB", "budget", "much", 500_000_000)
FOLDER = Case("{new}", "folder", "{full}")
RESULT = Case("{new}.json", "path", "{full}", acts="storage.files:write_json")
NEW_TOKENS = Case(7, "sampling.max_new_tokens", 0)
SAMPLING = {
    "max_new_tokens": NEW_TOKENS,
    "temperature": Case(0.5, "sampling.temperature", "nan"),
    "top_p": Case(0.75, "sampling.top_p", 1.5),
    "top_k": Case(9, "sampling.top_k", 0),
    "seed": Case(5, "sampling.seed", -1),
    "resident": Case("packed", "resident", "int9"),
    "dtype": Case("float32", "dtype", "float31"),
    "device": DEVICE,
}
TEXT_OF_RECIPE = at("recipe", dataset=DATASET, text_field=FIELD, samples=SAMPLES, seqlen=SEQLEN, bos=BOS, seed=SEED)
BITS_OF_INPUTS = at(
    "recipe",
    act_bits=Case(3, "", 4.3),
    kv_bits=Case(5, "", "inf"),
    key_bits=Case(5, "", 1, together=(("kv_bits", 4),)),
    value_bits=Case(5, "", 9, together=(("kv_bits", 4),)),
    act_method=Case("integer", "", "magic"),
)
MODEL = Case("{model}", "source.path", "no/such/model")
REVISION = Case("v1", "revision", "v1", acts="models.source:resolve")  # a model that lies here has none
CHECKPOINT = Case("{packed}", "folder", "{full}")
JUNIT = Case("{new}.xml", "path", "{full}", acts="evaluation.junit:write_junit")
