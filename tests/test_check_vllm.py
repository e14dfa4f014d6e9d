"""The script that asks a vLLM server: its judgements, and how it ends a server, here one of a few lines."""

import importlib.metadata
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import check_vllm
from scripts.serving.answers import problem_of, stop_word
from scripts.serving.checks import FAILED, PASSED, SKIPPED, Checks
from scripts.serving.compare import Scores, difference, likeliest
from scripts.serving.name_vllm import write
from scripts.serving.server import Server, ServerError, alive, free_port, metric, wait_until
from scripts.serving.tasks import compared

# A server with a second process, which ends with it or not.
SMALL = """
import subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
stays, port = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1])
if stays == "refuses":
    sys.exit("no such model")
wait = "import os, time\\nparent = os.getppid()\\nwhile os.getppid() == parent: time.sleep(0.05)"
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)" if stays == "stays" else wait])
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'# a comment\\nrunning{of="a"} 2.0\\nrunning{of="b"} 1.0\\nrunning_total 9.0\\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
print("KV cache size: 1,234 tokens", flush=True)
HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "server.py").write_text(SMALL, encoding="utf-8")
    return sys.executable, str(tmp_path / "server.py")


@pytest.fixture(params=["goes", "stays"])
def server(request: pytest.FixtureRequest, program: tuple[str, str], tmp_path: Path) -> Iterator[Server]:
    with Server(request.param, tmp_path / "log", free_port(), program=program) as running:
        running.wait(30)
        yield running


def test_a_server_is_asked_and_nothing_is_left_of_it(server: Server) -> None:
    assert server.metric("running") == 3
    assert server.said(r"size: ([\d,]+) tokens") == "1,234" and check_vllm.capacity(server).startswith("room for 1,234")
    assert wait_until(lambda: len(server.processes()) == 2, 10)
    before = server.processes()
    seconds, left = server.end(signal.SIGKILL, 1 if server.model == "stays" else 20)
    assert bool(left) == (server.model == "stays") and seconds < 20
    assert not server.healthy()
    server.kill()
    assert wait_until(lambda: not any(map(alive, before)), 10)


@pytest.mark.parametrize("server", ["stays"], indirect=True)
def test_what_outlives_a_killed_server_is_told_and_killed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_until(lambda: len(server.processes()) == 2, 10)
    monkeypatch.setattr(server, "end", lambda number, seconds: Server.end(server, number, 1))
    passed, figures = check_vllm.ended(server, signal.SIGKILL)
    assert passed and "outlived" in figures and not server.processes()


def test_a_server_that_ends_shows_its_last_words(program: tuple[str, str], tmp_path: Path) -> None:
    with (
        Server("refuses", tmp_path / "log", free_port(), program=program) as server,
        pytest.raises(ServerError, match=r"ended\n.*no such model"),
    ):
        server.wait(30)


def test_a_metric_is_summed_over_its_labels() -> None:
    assert metric('a{x="1"} 2\na{x="2"} 0.5\nab 7\n# a 4\n', "a") == 2.5
    assert metric("b 7\n", "a") == 0


def test_every_check_is_a_line_and_one_failure_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks()
    checks.run("one", lambda: (True, "3 tokens"))
    assert checks.finish() == PASSED
    checks.run("two", lambda: (1 / 0 > 0, "never"))
    checks.run("three", lambda: (True, ""))
    assert checks.finish() == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok: one (3 tokens)" and lines[2].startswith("FAILED: two (ZeroDivisionError")
    assert lines[-1] == "3 checks, failed: two"


def test_without_vllm_nothing_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_vllm.py"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_vllm.main() == SKIPPED
    assert "skipped: " in capsys.readouterr().out


def test_a_stop_string_is_new_where_it_stands() -> None:
    assert stop_word("one two three four", 5) == "hree "
    assert stop_word("ababababcab", 2) == "bc"
    with pytest.raises(ValueError, match="nothing in the second half"):
        stop_word("a" * 12)


def test_logprobs_of_a_greedy_answer() -> None:
    assert problem_of([-0.1, -0.5], [{"a": -0.1, "b": -3.0}, {"c": -0.5}]) is None
    assert "token 1 is not" in (problem_of([-0.1, -0.5], [{"a": -0.1}, {"c": -0.5, "d": -0.4}]) or "")
    assert "more than 1" in (problem_of([-0.1], [{"a": -0.1, "b": -0.2}]) or "")


def test_the_difference_of_two_scores() -> None:
    found = difference(Scores([-1.0, -2.0, -3.0, -4.0], [1, 2, 3, 4]), Scores([-1.0, -2.5, -3.0, -4.0], [1, 2, 3, 5]))
    assert (found.largest, found.mean, found.agreement, found.places) == (0.5, 0.125, 0.75, 4)
    assert "4 places" in str(found) and "75.0%" in str(found)


def test_the_likeliest_of_the_tokens_that_a_server_names() -> None:
    assert likeliest({"7": {"rank": 3, "logprob": -2.0}, "9": {"rank": 1, "logprob": -0.5}}) == 9
    assert likeliest({"7": {"rank": 1, "logprob": -0.2}}) == 7


def test_scores_are_the_same_only_with_all_metrics() -> None:
    one = {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.25}}
    assert compared(one, {"piqa": {"acc,none": 0.5, "acc_stderr,none": "N/A"}}) == (True, "piqa acc 0.5")
    assert compared(one, {"piqa": {"acc,none": 0.75}}) == (False, "piqa acc: 0.5 served, 0.75 by eval-tasks")
    assert not compared(one, {"piqa": {"acc,none": 0.5, "acc_norm,none": 0.5}})[0]
    assert compared({}, {}) == (False, "no scores")


@pytest.mark.parametrize(("bits", "coded"), [({"weight": 4.0, "act": 16.0, "kv": 16.0}, False), ({"kv": 4.0}, True)])
def test_coded_activations_are_seen_in_the_checkpoint(tmp_path: Path, bits: dict[str, float], coded: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": bits}}), encoding="utf-8")
    assert check_vllm.codes_activations(str(tmp_path)) == coded


def test_an_entry_named_vllm_has_the_version_of_a_build_for_cpus(tmp_path: Path) -> None:
    write("1.2.3", tmp_path)
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(tmp_path)])
    assert found.version == "1.2.3+cpu"
