import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from nestquant_cli.base import progress

LOGGER = "nestquant"


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    """No terminal, INFO on, and a clock that the test moves."""
    caplog.set_level(logging.INFO, LOGGER)
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    return clock


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> io.StringIO:
    """A terminal whose output is kept."""
    caplog.set_level(logging.INFO, LOGGER)
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda: console)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    return output


def test_lines_have_done_total_elapsed_and_eta(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track(range(4), "layers"):
        clock.now += 30
    assert caplog.messages == [
        "layers: 1/4, 30 s, ETA 1 min 30 s",
        "layers: 2/4, 1 min 00 s, ETA 1 min 00 s",
        "layers: 3/4, 1 min 30 s, ETA 30 s",
        "layers: 4/4, done in 2 min 00 s",
    ]


def test_lines_of_quick_steps_are_seconds_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track(range(100), "windows"):
        clock.now += 0.125
    assert caplog.messages == [
        "windows: 40/100, 5 s, ETA 8 s",
        "windows: 80/100, 10 s, ETA 2 s",
        "windows: 100/100, done in 12 s",
    ]


def test_lines_get_rarer_in_a_long_job(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track(range(10_000), "windows"):
        clock.now += 1
    assert len(caplog.messages) < 250


def test_an_unknown_total_is_counted_without_eta(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track((item for item in range(2)), "documents"):
        clock.now += 6
    assert caplog.messages == ["documents: 1, 6 s", "documents: 2, 12 s", "documents: 2, done in 12 s"]


def test_a_nested_loop_does_not_log_its_every_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track(range(3), "layers"):
        for _ in progress.track(range(7), "matrices"):
            clock.now += 0.1
    assert caplog.messages == ["layers: 3/3, done in 2 s"]


def test_a_failed_loop_is_not_called_done(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(progress.track(failing(), "layers"))
    assert caplog.messages == []
    list(progress.track([1], "again"))
    assert caplog.messages == ["again: 1/1, done in 0 s"]


def test_steps_count_what_is_reported(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress.steps("bytes", total=10) as advance:
        clock.now += 20
        advance(4)
        advance(6)
    assert caplog.messages == ["bytes: 4/10, 20 s, ETA 30 s", "bytes: 10/10, done in 20 s"]


def test_a_terminal_shows_a_bar_and_no_lines(screen: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.track("ab", "layers [x]"):
        for _ in progress.track(range(3), "matrices"):
            pass
    assert "layers [x]" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert caplog.messages == []


def test_a_bar_ends_with_its_loop_whatever_happens(screen: io.StringIO) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        for _ in progress.track(range(3), "layers"):
            for _ in progress.track(range(3), "matrices"):
                raise RuntimeError("stop")
    assert list(progress.track(range(3), "again")) == [0, 1, 2]
    assert "again" in screen.getvalue()


def test_nothing_when_quiet(clock: Clock, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    for _ in progress.track(range(3), "layers"):
        clock.now += 100
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_only_a_real_terminal_is_one() -> None:
    program = "from nestquant_cli.base import progress; raise SystemExit(progress.on_terminal())"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"TERM": "xterm", "FORCE_COLOR": "1"}
    assert subprocess.run(command, stderr=subprocess.PIPE, env=environment).returncode == 0
    master, slave = pty.openpty()
    try:
        assert subprocess.run(command, stderr=slave, env=environment).returncode == 1
        assert subprocess.run(command, stderr=slave, env=environment | {"TERM": "dumb"}).returncode == 0
    finally:
        os.close(master)
        os.close(slave)
