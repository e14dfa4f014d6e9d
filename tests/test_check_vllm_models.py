"""The script that serves a model of each family with vLLM: its cases and its judgements, without vLLM."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import check_vllm_models
from scripts.architectures.configurations import configuration
from scripts.serving.checks import SKIPPED
from scripts.serving.models import (
    ALSO_DIFFERS,
    CASES,
    DIFFERS,
    FAILS,
    NOT_IN_VLLM,
    NOT_QUANTIZED,
    REFUSED,
    SAME,
    SIZES,
    verdict,
)

BUILT = {"class": "SomeForCausalLM", "images": False}
NEAR, FAR, ERROR = {"largest": 1e-6, "places": 9}, {"largest": 0.5, "places": 9}, {"error": "ValueError: no"}


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"built": BUILT | {"error": "error: no"}}, NOT_QUANTIZED),
        ({"built": BUILT, "packed": NEAR}, SAME),
        ({"built": BUILT, "packed": {"error": "cause; consequence; remedy", "refused": True}}, REFUSED),
        ({"built": BUILT, "packed": ERROR, "model": ERROR}, NOT_IN_VLLM),
        ({"built": BUILT, "packed": ERROR, "model": NEAR}, FAILS),
        ({"built": BUILT, "packed": ERROR, "model": FAR}, FAILS),
        ({"built": BUILT, "packed": FAR, "model": NEAR}, DIFFERS),
        ({"built": BUILT, "packed": FAR, "model": FAR}, ALSO_DIFFERS),
        ({"built": BUILT, "packed": FAR, "model": {"largest": 0.01, "places": 9}}, DIFFERS),
        ({"built": BUILT, "packed": FAR, "model": ERROR}, DIFFERS),
    ],
)
def test_verdicts(row: dict[str, Any], outcome: str) -> None:
    assert verdict(row)[0] == outcome
    row["name"] = "some"
    line = check_vllm_models.table([row])[-1]
    assert line.startswith("| some | SomeForCausalLM |") and outcome in line


@pytest.mark.parametrize("name", CASES)
def test_configurations_have_heads_that_vllm_has(name: str) -> None:
    config = configuration(name, SIZES, CASES[name]).get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    if heads:
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        assert size >= 32


def test_without_vllm_nothing_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["check_vllm_models.py", "--out", str(tmp_path / "rows.jsonl")])
    assert check_vllm_models.main() == SKIPPED
    assert capsys.readouterr().out.startswith("skipped: ") and not list(tmp_path.iterdir())
