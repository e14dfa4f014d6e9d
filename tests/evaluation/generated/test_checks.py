"""Settings of `needle` are refused where they say nothing, and prompts where the model would not see them whole."""

import math
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.generated.checks import checked_making
from nestquant_cli.models.source import load_tokenizer, resolve


def made(folder: Path, tasks: tuple[str, ...], **settings: Any) -> Any:
    source = resolve(str(folder))
    return checked_making(tasks, source, load_tokenizer(source), 0, **settings)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (("piqa",), {"needle_tokens": 100}, "--needle-tokens is given, but needle is not in --tasks"),
        (("arithmetic_steps",), {"needle_depth": 0.5}, "--needle-depth is given"),
        (("needle",), {"needle_depth": 1.5}, "--needle-depth 1.5 is not a place"),
        (("needle",), {"needle_depth": math.nan}, "--needle-depth nan is not a place"),
        (("needle",), {}, "4096 tokens.* exceed the model's context of 256; .*use --needle-tokens 240 or less"),
        (("needle",), {"needle_tokens": 241}, "context of 256"),
    ],
)
def test_bad_settings_are_refused(
    tiny_model_folder: Path, tasks: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(NestQuantError, match=message):
        made(tiny_model_folder, tasks, **settings)


def test_other_tasks_need_no_long_context(tiny_model_folder: Path) -> None:
    assert made(tiny_model_folder, ("piqa",)).needle_tokens == 4096
    assert made(tiny_model_folder, ("needle",), needle_tokens=240, needle_depth=0).needle_depth == 0
