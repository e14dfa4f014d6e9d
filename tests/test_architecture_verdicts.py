"""Verdicts on rows that are made up, and stages that kill their process."""

import os
import time
from pathlib import Path
from typing import Any

from scripts.architectures.children import in_child, read_notes
from scripts.architectures.verdicts import ERROR, NO_CACHE, NOT_RUN, REFUSED, WHOLE, WRONG, Verdict

STEPS = {"cached": 0.0, "cacheless": 0.0, "padded": 0.0}


def done(code: int = 0, error: str = "", plan: int | None = None) -> dict[str, Any]:
    return {"code": code, "error": error, "plan": {"code": code if plan is None else plan, "error": ""}}


def finished(**eight: Any) -> dict[str, Any]:
    """The row of a case that works whole."""
    measured = {"finite": True, "kl": 0.001, "kl_of_most": 0.001, "steps": STEPS}
    commands = {"quantize": {"code": 0}, "eval-ppl": {"code": 0, "kl_divergence": 0.001}}
    return {
        "plain": {"parts": [], "steps": STEPS},
        "quantized": {"tried": {"whole": done()}, "level": "whole"},
        "checked": {"verify": {"code": 0, "error": ""}},
        "loaded": measured,
        "eight": measured | commands | eight,
    }


def test_a_case_that_works_and_one_that_plain_transformers_does_not_run() -> None:
    assert Verdict.of(finished()) == Verdict(WHOLE)
    assert Verdict.of({"built": {"crash": "ImportError: timm"}}).outcome == NOT_RUN


def test_a_remedy_that_helps_and_one_that_does_not() -> None:
    advice = "error: no keys; not quantized; use --kv-bits 16"
    row = finished() | {"quantized": {"tried": {"whole": done(2, advice), "16-bit keys and values": done()}}}
    row["quantized"]["level"] = "16-bit keys and values"
    assert Verdict.of(row) == Verdict(NO_CACHE, "no keys; not quantized; use --kv-bits 16")
    refusals = {
        "whole": done(2, advice),
        "16-bit keys and values": done(2, "error: x"),
        "weights only": done(2, "error: x"),
    }
    verdict = Verdict.of(finished() | {"quantized": {"tried": refusals}})
    assert (verdict.outcome, verdict.defects) == (REFUSED, ["the remedy --kv-bits 16 of whole fails"])


def test_a_plan_that_promises_what_fails_is_a_defect() -> None:
    tried = {level: done(2, "error: x", plan=0) for level in ("whole", "16-bit keys and values", "weights only")}
    verdict = Verdict.of(finished() | {"quantized": {"tried": tried}})
    assert verdict.outcome == REFUSED and len(verdict.defects) == 3


def test_errors_that_rounding_does_not_explain_are_wrong() -> None:
    for changed in (
        {"kl": 0.1},
        {"kl_of_most": float("nan")},
        {"finite": False},
        {"steps": STEPS | {"cacheless": 0.1}},
        {"eval-ppl": {"code": 0, "kl_divergence": 0.1}},
    ):
        assert Verdict.of(finished(**changed)).outcome == WRONG, changed
    routed = finished(kl=0.1)
    routed["plain"] = routed["plain"] | {"parts": ["experts"]}
    assert Verdict.of(routed).outcome == WHOLE  # a router may choose another expert for a few tokens


def test_what_fails_on_a_finished_checkpoint_is_an_error() -> None:
    for stage, found in (
        ("loaded", {"crash": "KeyError: 'x'"}),
        ("eight", {"crash": "no end after 240 s"}),
        ("checked", {"verify": {"code": 2, "error": "error: a hash differs"}}),
        ("eight", finished()["eight"] | {"steps": STEPS | {"cached": "ValueError: no cache"}}),
    ):
        assert Verdict.of(finished() | {stage: found}).outcome == ERROR, (stage, found)


def test_a_stage_that_dies_or_hangs_leaves_the_notes_of_those_before_it(tmp_path: Path) -> None:
    def dies(note: Any) -> None:
        note("first", {"a": 1})
        os._exit(3)

    def hangs(note: Any) -> None:
        note("second", {"b": 2})
        time.sleep(60)

    notes = tmp_path / "notes.jsonl"
    assert "died" in in_child(dies, notes, 60)
    assert "no end" in in_child(hangs, notes, 0.5)
    assert in_child(lambda note: note("third", {}), notes, 60) == ""
    assert read_notes(notes) == {"first": {"a": 1}, "second": {"b": 2}, "third": {}}
