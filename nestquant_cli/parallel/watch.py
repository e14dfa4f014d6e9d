"""How the processes of a run notice that one of them has ended: each keeps a connection to rank 0.

The operating system closes the connections of a process however it ends. So there are no heartbeats, and a process may
compute or wait for as long as it needs. A process that ends as it should sends "done" before.
"""

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any, Protocol

from ..base.errors import NestQuantError
from ..base.process import BAD_INPUT

GRACE = 3.0  # seconds that a process has to end by itself once it knows that another one failed
_KEY = "nestquant/watch"
_LINE = 200  # bytes of the longest message
_ALIVE = (
    ("TCP_KEEPIDLE", 15),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 4),
)  # seconds and tries: a machine that is gone is noticed after 15 + 4 · 5 s

logger = logging.getLogger("nestquant")


class Store(Protocol):
    """The methods of torch.distributed's key-value store that are used."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


class Watch:
    """The connections of one process, each with a thread that waits for the other end to close.

    Args:
        rank: rank of this process.
        size: number of processes.
        connections: open sockets to other processes, by their rank: all others on rank 0, and rank 0 on the others.
    """

    def __init__(self, rank: int, size: int, connections: dict[int, socket.socket]) -> None:
        self.rank, self.size, self.connections = rank, size, connections
        self.failed: int | None = None
        self._lock, self._seen, self._leaving = threading.Lock(), threading.Event(), threading.Event()
        for other, connection in connections.items():
            threading.Thread(target=self._listen, args=(other, connection), daemon=True).start()

    def lost(self) -> NestQuantError | None:
        """The error for an exchange that failed, after waiting up to `GRACE` seconds; None if no process has ended."""
        self._leaving.set()
        self._seen.wait(GRACE)
        return None if self.failed is None else self._error(self.failed)

    def leave(self, failed: bool) -> None:
        """Ends the watch. The other processes continue if this one did not fail, and end if it did."""
        self._leaving.set()
        self._send(f"failed {self.rank}" if failed else "done")
        for connection in self.connections.values():
            _close(connection)

    def _listen(self, other: int, connection: socket.socket) -> None:
        """Waits for a message of another process, or for its end."""
        words = _read_line(connection).split()
        if words == ["done"]:
            return
        self._end(int(words[1]) if len(words) == 2 and words[0] == "failed" and words[1].isdigit() else other)

    def _end(self, failed: int) -> None:
        with self._lock:
            if self.failed is not None or self._leaving.is_set():
                self.failed = failed if self.failed is None else self.failed
                self._seen.set()
                return
            self.failed = failed
        self._seen.set()
        self._send(f"failed {failed}")  # rank 0 passes it on to the others
        if not self._leaving.wait(GRACE):
            logger.error("%s", self._error(failed))
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(BAD_INPUT)  # the main thread may be waiting for the others forever

    def _send(self, message: str) -> None:
        for connection in self.connections.values():
            try:
                connection.sendall(f"{message}\n".encode())
            except OSError:  # that process has ended already
                continue

    def _error(self, failed: int) -> NestQuantError:
        return NestQuantError(
            f"process {failed} of this run has ended before the others",
            f"process {self.rank} of {self.size} stopped; what is finished is kept",
            f"see what process {failed} said, and repeat the command",
        )


def connect(rank: int, size: int, store: Store, timeout: timedelta) -> Watch:
    """Connects this process with the others. All processes of a run call it at about the same time.

    Args:
        rank: rank of this process.
        size: number of processes.
        store: key-value store that all processes share, for the port and a secret token of rank 0.
        timeout: time to wait for the others.

    Raises:
        NestQuantError: the others do not connect in time, or cannot be reached.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    try:
        connections = _await_all(size, store, deadline) if rank == 0 else {0: _reach_first(rank, store, deadline)}
    except (OSError, ValueError) as error:
        raise NestQuantError(
            f"the processes of this run cannot reach each other ({error})",
            "nothing was done",
            "check MASTER_ADDR and the network between the machines",
        ) from error
    for connection in connections.values():
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Watch(rank, size, connections)


def _await_all(size: int, store: Store, deadline: float) -> dict[int, socket.socket]:
    token, connections = secrets.token_hex(16), dict[int, socket.socket]()
    with _listener() as listener:
        store.set(_KEY, f"{listener.getsockname()[1]} {token}")
        while len(connections) < size - 1:
            listener.settimeout(_left(deadline))
            connection, _ = listener.accept()
            connection.settimeout(min(5.0, _left(deadline)))
            words = _read_line(connection).split()
            if len(words) == 2 and secrets.compare_digest(words[0], token) and words[1].isdigit():
                connections[int(words[1])] = connection
            else:
                connection.close()  # not a process of this run
    return connections


def _reach_first(rank: int, store: Store, deadline: float) -> socket.socket:
    port, token = bytes(store.get(_KEY)).decode().split()
    address = os.environ.get("MASTER_ADDR", "localhost")
    connection = socket.create_connection((address, int(port)), timeout=_left(deadline))
    connection.sendall(f"{token} {rank}\n".encode())
    return connection


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _read_line(connection: socket.socket) -> str:
    """The next line, or "" if the connection ends first. Reads byte by byte, so as not to consume what follows."""
    line = b""
    try:
        while len(line) < _LINE and not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return ""
            line += byte
    except OSError:
        return ""
    return line.decode(errors="replace")


def _close(connection: Any) -> None:
    with contextlib.suppress(OSError):  # the other end has closed it
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
