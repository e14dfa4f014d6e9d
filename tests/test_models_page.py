"""docs/models.md: its tables are those of the script, and no class of causal language models is left out."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scripts.architectures.page import (
    CONV1D,
    CROSS,
    DENSE,
    EXPERTS,
    HYBRID,
    IMAGES,
    STATES,
    UNKNOWN,
    structure_of,
    tables,
)
from scripts.architectures.verdicts import NOT_RUN, REFUSED, WHOLE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
    spec = importlib.util.spec_from_file_location("make_models_table", ROOT / "scripts" / "make_models_table.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sys.path.remove(str(ROOT / "scripts"))
    return script


def row(name: str, *, images: bool = False, **plain: Any) -> dict[str, Any]:
    """A row that was refused."""
    refusal = {
        "code": 2,
        "error": "error: its layers | are odd; it was not quantized; use another",
        "plan": {"code": 2},
    }
    return {
        "name": name,
        "versions": "nestquant 1",
        "built": {"class": "TinyForCausalLM", "images": images},
        "plain": {"parts": [], "cache": ["DynamicLayer"], "never_called": []} | plain,
        "quantized": {"tried": {"whole": refusal}},
    }


def test_every_class_of_causal_language_models_has_a_row() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| ([\w.:-]+) \| ", text, re.M))
    assert not set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - rows
    assert {WHOLE, REFUSED, NOT_RUN} <= set(re.findall(r"^\| [^|]+ \| \w* \| ([\w, ]+) \|", text, re.M))


def test_structures_are_told_by_what_the_plain_model_has() -> None:
    conv = "LinearAttentionLayer"
    assert structure_of(row("a")) == DENSE
    assert structure_of(row("a", parts=["experts"])) == EXPERTS
    assert structure_of(row("a", parts=["experts"], cache=["DynamicLayer", conv])) == HYBRID
    assert structure_of(row("a", cache=["LinearAttentionAndFullAttentionLayer"])) == HYBRID
    assert structure_of(row("a", cache=[conv])) == STATES
    assert structure_of(row("a", cache=[])) == STATES
    assert structure_of(row("a", parts=["Conv1D"])) == CONV1D
    assert structure_of(row("a", never_called=["encoder_attn.q_proj"])) == CROSS
    assert structure_of(row("a", images=True, parts=["experts"])) == IMAGES
    assert structure_of(row("a") | {"plain": {"crash": "ImportError: x"}}) == UNKNOWN


def test_tables_count_each_case_once_and_give_the_reason() -> None:
    text = tables([row("llama"), row("llama:long"), row("llava", images=True)])
    heads, *counts = [line.split(" | ") for line in text.splitlines() if "classes of" in line or "other forms" in line]
    assert [cells[1] for cells in (heads, *counts)] == ["1", "1", "1"]
    assert text.count("its layers \\| are odd |") == 3


def test_the_page_is_replaced_between_its_marks_only(script: Any) -> None:
    before = f"# Models\n\nWords.\n\n{script.BEGIN}old\n{script.END}"
    assert script.page(before, "new\n") == before.replace("old", "new")
    assert "mistral" in script.missing([row("llama")]) and "llama" not in script.missing([row("llama")])
