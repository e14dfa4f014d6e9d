"""Models of other families give in vLLM what they give in transformers: a handful of scripts/check_vllm_models.py."""

import json
import subprocess
import sys
from typing import Any

import pytest

from scripts.serving.models import REFUSED, SAME, verdict
from tests.integrations.vllm.serving import ROOT, needs_vllm

pytestmark = needs_vllm

EXPECTED = {
    "gpt2": SAME,  # weights of Conv1D, which vLLM transposes
    "bloom": SAME,  # q, k and v of a head follow each other; vLLM puts rows in another order
    "stablelm": SAME,  # what is one layer is said by names of tensors alone
    "gpt_neox": SAME,  # vLLM runs the class of transformers
    "gemma3_text": SAME,  # layers with a window, norms of heads
    "mamba2": SAME,  # states
    "granitemoehybrid": REFUSED,  # the prefix of a layer is not its name
    "jamba": REFUSED,  # layers with states never ask for a method
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the script says of them, run once: importing vLLM takes as long as some models."""
    folder = tmp_path_factory.mktemp("models")
    words = ["--only", *EXPECTED, "--out", folder / "rows.jsonl", "--work", folder / "work"]
    command = [sys.executable, ROOT / "scripts" / "check_vllm_models.py", *words]
    subprocess.run(command, capture_output=True, timeout=3000, check=False)
    found = map(json.loads, (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["name"]: row for row in found}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model(name: str, rows: dict[str, dict[str, Any]]) -> None:
    outcome, said = verdict(rows[name])
    assert outcome == EXPECTED[name], said
    assert "\n" not in said
