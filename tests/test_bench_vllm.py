"""The script that times vLLM: its rates, ratios and table, from times that are made up."""

import sys
import time
from dataclasses import replace

import pytest

from scripts import bench_vllm
from scripts.serving.measure import Job, prompts, timed

# One round: seconds by the wall clock and of the processor, for the prompts with one token and with all.
FAST = {
    "start": 20.0,
    "memory": 5e8,
    "room": 46592,
    "prompts": {"1": [[1.0, 0.5], [1.0, 0.5]], "16": [[2.0, 2.0]]},
    "wholes": {"1": [[2.0, 1.0], [2.0, 1.0]], "16": [[4.0, 3.0]]},
}
SLOW = {**FAST, "room": None, "wholes": {"1": [[3.0, 1.5]], "16": [[6.0, 4.0]]}}


def test_rates_leave_out_prompts_and_first_tokens() -> None:
    found = bench_vllm.summary([FAST, FAST], new=128)
    assert found["rate"] == {1: 127 / 1, 16: 16 * 127 / 2}
    assert found["per_processor_second"] == {1: 127 / 0.5, 16: 16 * 127 / 1}
    assert (found["start"], found["memory"], found["room"], found["prompt"]) == (20, 5e8, 46592, 1)


def test_the_table_has_ratios_to_the_first_row() -> None:
    rows = {"fast": bench_vllm.summary([FAST], 128), "slow": bench_vllm.summary([SLOW], 128)}
    heading, rule, *lines = bench_vllm.table(rows).splitlines()
    assert heading.count("|") == rule.count("|") == lines[0].count("|") == 10
    assert "46,592" in lines[0] and "127.0 (1.00 ×)" in lines[0]
    assert lines[1].startswith("| slow | 20 | 500 |  | 1.00 | 63.5 (0.50 ×) | 508.0 (0.50 ×) | 127.0 (0.50 ×)")


def test_the_size_of_the_cache_is_in_the_log() -> None:
    assert bench_vllm.room("INFO GPU KV cache size: 175,360 tokens\n") == 175360
    assert bench_vllm.room("nothing") is None


def test_without_vllm_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_vllm.py", "folder"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench_vllm.main() == 0
    assert capsys.readouterr().out.startswith("skipped: ")


def test_only_what_is_given_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_vllm.py", "folder", "--w4", "w4"])
    found = bench_vllm.jobs(bench_vllm.parse())
    assert next(iter(found)) == bench_vllm.BASE and len(found) == 4
    assert all("W4A" not in name for name in found)


def test_a_run_is_timed_by_the_clock_and_of_the_process() -> None:
    def busy(ids: list[list[int]], new: int) -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    wall, processor = timed(busy, [[1, 2]], 4)
    assert wall >= 0.05 and 0 <= processor < 60


def test_every_engine_gets_the_same_prompts() -> None:
    job = Job("vllm", "m", 1, 16, 8, [1, 4], 1, True)
    assert prompts(job, 4) == prompts(replace(job, engine="transformers"), 4)
    assert [len(each) for each in prompts(job, 4)] == [16] * 4
