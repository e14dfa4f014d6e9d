"""The generated tasks as tasks of lm-eval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arithmetic import SHOTS, arithmetic_items, solved_items
from .needle import BEGINNING, QUESTION, needle_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDLE, ARITHMETIC = "needle", "arithmetic_steps"
GENERATED = (NEEDLE, ARITHMETIC)
ANSWER_TOKENS = 16  # that `needle` generates: four digits, however a tokenizer cuts them, and a few more
_VERSION = 1.0  # to be raised when an item changes


@dataclass(frozen=True)
class Making:
    """What the items of the generated tasks are made from.

    Attributes:
        tokenizer: the model's tokenizer, which measures the prompts of `needle`.
        seed: seed of all that is random.
        needle_tokens: most tokens of a prompt of `needle`.
        needle_depth: place of its fact in the text, from 0 to 1; None for places that cover the text evenly.
    """

    tokenizer: "PreTrainedTokenizerBase"
    seed: int = 0
    needle_tokens: int = 4096
    needle_depth: float | None = None


def make_task(name: str, making: Making) -> Any:
    """A generated task as a task object of lm-eval.

    Args:
        name: one of `GENERATED`.
        making: what its items are made from.

    Raises:
        NestQuantError: see `needle_items`.
    """
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config={"task": name, "metadata": {"version": _VERSION}, **_DEFINED[name](making)})


def _needle(making: Making) -> dict[str, Any]:
    def count(text: str) -> int:
        return len(making.tokenizer(text, verbose=False).input_ids)

    items = needle_items(count, making.needle_tokens, making.needle_depth, making.seed)
    return {
        "custom_dataset": _splits(test=items),
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "generate_until",
        "doc_to_text": f"{{{{text}}}}{_as_template(QUESTION)}",
        "gen_prefix": _as_template(BEGINNING),
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False},
        "filter_list": [
            {
                "name": "number",
                "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [_mean_of("exact_match")],
    }


def _arithmetic(making: Making) -> dict[str, Any]:
    return {
        "custom_dataset": _splits(test=arithmetic_items(making.seed), train=solved_items(making.seed)),
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": SHOTS,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [_mean_of("acc")],
    }


_DEFINED: dict[str, Callable[[Making], dict[str, Any]]] = {NEEDLE: _needle, ARITHMETIC: _arithmetic}


def _mean_of(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _as_template(text: str) -> str:
    """A text with {fields} as lm-eval's templates write them."""
    return text.replace("{", "{{").replace("}", "}}")


def _splits(**items: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """What lm-eval calls for a task's data."""
    from datasets import Dataset, DatasetDict

    made = DatasetDict({split: Dataset.from_list(list(rows)) for split, rows in items.items()})
    return lambda **_: made
