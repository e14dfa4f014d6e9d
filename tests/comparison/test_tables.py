"""The Markdown report of a comparison: which model is the reference, and text of others that stays text."""

from typing import Any

from nestquant_cli.comparison.result import Comparison, Row
from nestquant_cli.comparison.tables import markdown

PROTOCOL: dict[str, Any] = {
    **{"dataset": "wikitext2", "split": "test", "windows": 2, "windows_in_text": 9, "seqlen": 64, "stride": 64},
    **{"bos": "default", "dtype": "auto", "device": "cpu", "versions": {"torch": "2"}},
    "reference": "tiny, Q4_1 GGUF, de-quantized to bfloat16",
    "calibration": {"w4": "2 × 64 tokens of my_text.txt, seed 0"},
}
BITS = {"weight": 4.0, "act": 16.0, "kv": 16.0}


def report(name: str = "w4", **changes: Any) -> str:
    rows = [Row("unquantized", {}, None, 10.0, 0.1), Row(name, BITS, 4.25, 11.0, 0.2)]
    return markdown(Comparison("tiny", None, rows, PROTOCOL | changes), [])


def test_it_names_the_reference() -> None:
    text = report()
    assert "Reference: tiny, Q4_1 GGUF, de-quantized to bfloat16." in text
    assert "calibrated on 2 × 64 tokens of my_text.txt, seed 0" in text and "| w4 | w4 | 4.2500 |" in text


def test_names_of_others_stay_names() -> None:
    bad = "x|y\n\n# Heading <script> `a` [b](c)"
    text = report(bad, dataset=bad, reference=bad, calibration={bad: bad})
    assert "<script>" not in text and "\n# Heading" not in text
    assert text.count("Heading") == 5 and len(text.splitlines()) == len(report().splitlines())
