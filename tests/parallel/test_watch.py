"""Processes that end, each in its own way, and what the others make of it: real ones, without torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, threading, time
from datetime import timedelta
from pathlib import Path
from nestquant_cli.parallel.watch import connect

class Store:
    def __init__(self, folder): self.folder = folder
    def set(self, key, value):
        path = self.folder / key.replace("/", "-")
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)
    def get(self, key):
        path = self.folder / key.replace("/", "-")
        while not path.is_file(): time.sleep(0.01)
        return path.read_bytes()

rank, size, folder, plan = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
watch = connect(rank, size, Store(folder), timedelta(seconds=30))
print("joined", flush=True)
if plan == "compute":
    while True: pass
elif plan == "wait":
    threading.Event().wait()
elif plan == "fail":
    watch.leave(failed=True)
    sys.exit("error: a bug")
elif plan == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
elif plan == "exchange":
    time.sleep(0.5)
    lost = watch.lost()
    watch.leave(failed=True)
    sys.exit(f"error: {lost}")
elif plan.startswith("done"):
    time.sleep(float(plan[4:] or 0))
    watch.leave(failed=False)
"""
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process for every plan and waits until all have joined."""
    running: list[subprocess.Popen[str]] = []

    def run(*plans: str) -> list[subprocess.Popen[str]]:
        for rank, plan in enumerate(plans):
            words = [sys.executable, "-c", PROGRAM, str(rank), str(len(plans)), str(tmp_path), plan]
            environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            running.append(subprocess.Popen(words, env=environment, **pipes))  # type: ignore[call-overload]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "joined\n"
        return running

    yield run
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def outcome(process: subprocess.Popen[str], seconds: float = 15) -> tuple[int, list[str]]:
    """Exit code and lines on standard error."""
    _, stderr = process.communicate(timeout=seconds)
    return process.returncode, stderr.splitlines()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_when_one_is_killed_all_others_end_with_one_line_that_names_it(start: Start, failing: int) -> None:
    """One computes in a loop that never comes to an exchange, one waits without end."""
    plans = ["compute", "wait"]
    plans.insert(failing, "wait")
    processes = start(*plans)
    processes[failing].kill()
    for rank, process in enumerate(processes):
        if rank != failing:
            code, lines = outcome(process)
            assert code == 2 and len(lines) == 1, lines
            assert f"process {failing} of this run has ended before the others; process {rank} of 3 stopped" in lines[0]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_the_others(start: Start, failing: int) -> None:
    plans = ["wait", "compute"]
    plans[failing] = "fail"
    processes = start(*plans)
    assert outcome(processes[failing]) == (1, ["error: a bug"])
    code, lines = outcome(processes[1 - failing])
    assert code == 2 and len(lines) == 1 and f"process {failing} of this run has ended" in lines[0]


def test_an_exchange_that_fails_with_the_process_is_reported_once(start: Start) -> None:
    processes = start("exchange", "wait")
    processes[1].kill()
    code, lines = outcome(processes[0])
    assert code == 1 and len(lines) == 1 and "error: process 1 of this run has ended" in lines[0]


def test_who_ends_as_it_should_disturbs_nobody(start: Start) -> None:
    processes = start("done", "done0.5", "done5")
    for process in processes:
        assert outcome(process) == (0, [])


def test_a_process_that_only_sleeps_is_not_given_up(start: Start) -> None:
    processes = start("done60", "stop")
    time.sleep(4)
    assert processes[0].poll() is None
    processes[1].send_signal(signal.SIGCONT)
    processes[1].kill()
    assert outcome(processes[0])[0] == 2


def test_a_stranger_at_the_door_is_sent_away(start: Start, tmp_path: Path) -> None:
    """Who does not know the word is no process of the run."""
    import socket
    import threading

    def knock() -> None:
        door = tmp_path / "nestquant-watch"
        while not door.is_file():
            time.sleep(0.001)
        with socket.create_connection(("localhost", int(door.read_text().split()[0]))) as connection:
            connection.sendall(b"let-me-in 1\n")
            assert connection.recv(10) == b""

    stranger = threading.Thread(target=knock)
    stranger.start()
    processes = start("done", "done")
    stranger.join(10)
    assert [outcome(process) for process in processes] == [(0, [])] * 2
