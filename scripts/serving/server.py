"""A vLLM server on the loopback address, in processes of its own, whose end is watched."""

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

HOST = "127.0.0.1"
# Nothing goes to the network; threads are the system's to place, so that a machine of two cores gives both.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class ServerError(Exception):
    """The server ended or does not answer; the message has the end of its log."""


def command(checkpoint: str) -> list[str]:
    """How vLLM serves a checkpoint in this environment.

    Its command asks for the version of the package "vllm" and fails where that is called vllm-cpu alone.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
    return [str(Path(sys.executable).parent / "vllm"), "serve", checkpoint]


def environment() -> dict[str, str]:
    """This process's environment with ENVIRONMENT, where it does not say otherwise."""
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    return ENVIRONMENT | threads | os.environ


def free_port() -> int:
    """A port of the loopback address that nothing listens to."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
    return port


def wait_until(true: Callable[[], bool], seconds: float, every: float = 0.2) -> bool:
    """Whether `true` becomes true in so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Server:
    """`vllm serve` with a checkpoint; leaving the context kills what still runs of it.

    Args:
        checkpoint: the model, which is also its name for clients.
        log: file for what the server prints.
        port: of the loopback address.
        arguments: further words of the command.
        program: what is called with `serve CKPT`; vLLM's own if not given.
    """

    def __init__(
        self, checkpoint: str, log: Path, port: int, arguments: Sequence[str] = (), program: Sequence[str] = ()
    ) -> None:
        self.model, self.log, self.port = checkpoint, log, port
        start = [*program, "serve", checkpoint] if program else command(checkpoint)
        words = [*start, "--host", HOST, "--port", str(port), *arguments]
        with log.open("wb") as out:
            self._main = psutil.Popen(
                words, env=environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._seen: set[psutil.Process] = {self._main}

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills all of its processes, and waits until they have ended."""
        for process in self.processes():
            process.kill()
        self._main.wait(10)
        wait_until(lambda: not self.processes(), 10)

    def processes(self) -> list[psutil.Process]:
        """Those of the server that run, also when the one that started them has gone."""
        for process in [each for each in self._seen if alive(each)]:
            try:
                self._seen.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._seen if alive(process)]

    def wait(self, seconds: float) -> float:
        """Waits until the server answers; returns seconds since its start.

        Raises:
            ServerError: it ended, or does not answer in time.
        """
        done = wait_until(lambda: self.healthy() or not alive(self._main), seconds)
        if not done or not self.healthy():
            raise ServerError(f"the server {'ended' if done else f'does not answer in {seconds:.0f} s'}\n{self.tail()}")
        self.processes()
        return time.time() - float(self._main.create_time())

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name: str) -> float:
        """The sum of a metric that the server publishes, such as vllm:num_requests_running."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            return metric(answer.read().decode(), name)

    def end(self, number: signal.Signals, seconds: float) -> tuple[float, list[str]]:
        """Sends a signal to the first process alone.

        Returns:
            Seconds until all of its processes have ended, and the names of those that have not.
        """
        self.processes()
        start = time.monotonic()
        self._main.send_signal(number)
        wait_until(lambda: self._main.poll() is not None and not self.processes(), seconds)
        return time.monotonic() - start, [process.name() for process in self.processes()]

    def said(self, pattern: str) -> str | None:
        """The first group of the last line of the log where the pattern is found."""
        found = re.findall(pattern, self.log.read_text(encoding="utf-8", errors="replace"))
        return str(found[-1]) if found else None

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels, in the text format of Prometheus."""
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))
