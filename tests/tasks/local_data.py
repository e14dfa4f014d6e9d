"""Reads a task's items from a JSONL file, found beside the YAML file and not from where the command is run."""

import json
from pathlib import Path
from typing import Any

import datasets

HERE = Path(__file__).resolve().parent
SPLIT = "validation"


def load(file: str, folder: str = "data", **_: Any) -> datasets.DatasetDict:
    """The items as the split "validation".

    Args:
        file: name of the JSONL file.
        folder: where it lies: absolute, or relative to this file.
    """
    path = HERE / folder / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: set 'folder' in the task's dataset_kwargs")
    lines = path.read_text(encoding="utf-8").splitlines()
    return datasets.DatasetDict({SPLIT: datasets.Dataset.from_list([json.loads(line) for line in lines if line])})


def winogrande_text(item: dict[str, Any]) -> int:
    """Index of the right option: the two prefixes are scored against one ending (partial evaluation)."""
    return {"1": 0, "2": 1}[item["answer"]]


def winogrande_target(item: dict[str, Any]) -> str:
    """What follows the blank."""
    return item["sentence"].partition("_")[2].strip()


def winogrande_choice(item: dict[str, Any]) -> list[str]:
    """The sentence up to the blank, with each option in it."""
    prefix = item["sentence"].partition("_")[0]
    return [prefix + item["option1"], prefix + item["option2"]]
