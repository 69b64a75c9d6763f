"""One failing rank ends all ranks."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection, wait

import paddle.distributed as dist

from ..errors import UserError
from .distributed import is_main_process, meet_with, rank, world_size

__all__ = ["FailureWatch", "init_process_group"]

_START_LIMIT = 120.0  # seconds that ranks wait for each other at the start
_LONGEST_MESSAGE = 10_000  # characters
_ENDED = "has ended before the others; run the same command on all machines"
_LOST = "is lost: it was killed or its machine is gone; run the same command with -resume auto to continue"


def init_process_group() -> None:
    """Let Paddle connect the ranks, when a :class:`FailureWatch` has found that all have started."""
    # If a rank is lost now, Paddle waits for 15 minutes, and holds the lock without which no Python thread can run.
    faulthandler.dump_traceback_later(_START_LIMIT, exit=True)
    with contextlib.redirect_stderr(io.StringIO()):  # Paddle prints the flags that the launcher itself has set
        dist.init_parallel_env()
    faulthandler.cancel_dump_traceback_later()


class FailureWatch:
    """Ends every rank with the same message and exit code when one of them fails, so that none waits forever.

    Each rank has a TCP connection to rank 0. To rank 0, another rank is

    - missing, until it sends ``hello``. Rank 0 then answers ``go``, or ``failed`` if some are missing for too long.
    - running, until it sends ``done`` or ``failed``. Rank 0 passes a failure on, its own included, and all exit.
      In between it may send ``here`` and wait; when all ranks have come to this place, rank 0 sends ``go``.
    - lost, if the connection ends before that; this counts as ``failed``. The kernel ends it at once for a killed
      process, and after 20 s for a machine that does not answer. For a suspended or busy process it still answers.

    To another rank, rank 0 is running until it sends ``done``, when all others are, or ``failed``; or it is lost.

    A thread reads the connections, because the main thread may be waiting in a collective operation.

    Raises:
        UserError: a rank did not start, or failed before all had started.
    """

    def __init__(self):
        self._failing = threading.Lock()  # whoever takes it reports the first failure, and ends this process
        self._connections: dict[Connection, int] = {}  # and the ranks at their other ends
        self._heard = threading.Semaphore(0)  # on rank 0 of each ``here``, on others of each ``go``
        self._done: list[int] = []  # ranks that have sent ``done``
        self._closes = False
        os.register_at_fork(after_in_child=self._close_connections)  # a killed rank's readers would keep them open
        if is_main_process():
            self._gather_ranks(*_store_address())
        else:
            self._find_main_process(*_store_address())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        meet_with(self.meet)

    def meet(self) -> None:
        """Wait until all ranks have called this.

        Raises:
            UserError: a rank has ended, as with ``-h`` in its command.
        """
        if is_main_process():
            for _ in self._connections:
                while not self._heard.acquire(timeout=1):
                    if self._done:
                        raise UserError(f"rank {self._done[0]} {_ENDED}")
            self._send("go")
        else:
            self._send("here")
            self._heard.acquire()

    def announce(self, message: str, exit_code: int) -> None:
        """Let all ranks exit with a message of this one, which must exit then; unless another was faster."""
        if is_main_process():
            self._failing.acquire()
            self._send("failed", exit_code, message)
        else:
            self._send("failed", exit_code, f"rank {rank()}: {message}")
            self._thread.join(timeout=10)  # it ends the process when rank 0 has answered

    def close(self) -> None:
        """Wait until all ranks are done."""
        self._closes = True
        meet_with(None)
        if is_main_process():
            self._thread.join()
            self._send("done")
        else:
            self._send("done")
            self._thread.join()

    def _gather_ranks(self, host: str, port: int) -> None:
        missing = set(range(1, world_size()))
        deadline = time.monotonic() + _START_LIMIT
        try:
            server = socket.create_server(("", port), backlog=world_size())
        except OSError as error:
            raise UserError(f"rank 0 cannot listen at {host}:{port} ({error.strerror}); free the port") from None
        with server:
            while missing:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    connection = _watched(server.accept()[0])
                except TimeoutError:
                    ranks = ", ".join(map(str, sorted(missing)))
                    message = f"rank {ranks} did not start within {_START_LIMIT:.0f} s; see its log/workerlog.N"
                    self._send("failed", 2, message)
                    raise UserError(message) from None
                kind, other, _ = _receive(connection)
                if kind == "hello" and other in missing:  # else it is none of ours
                    self._connections[connection] = other
                    missing.remove(other)
        self._send("go")

    def _find_main_process(self, host: str, port: int) -> None:
        deadline = time.monotonic() + _START_LIMIT
        while True:
            try:
                connection = _watched(socket.create_connection((host, port), timeout=5))
                break
            except OSError as error:  # rank 0 may not listen yet
                if time.monotonic() > deadline:
                    raise UserError(
                        f"rank {rank()} did not reach rank 0 at {host}:{port} within {_START_LIMIT:.0f} s ({error}); "
                        "see log/workerlog.0 on the machine of rank 0, or open all ports between the machines"
                    ) from None
                time.sleep(0.5)
        self._connections[connection] = 0
        self._send("hello", rank())
        kind, _, message = _receive(connection, timeout=_START_LIMIT + 5)
        if kind != "go":
            raise UserError(message or f"rank 0 at {host}:{port} {_LOST}")

    def _watch(self) -> None:
        running = dict(self._connections)
        while running:
            wait(list(running))
            for connection in [each for each in running if each.poll()]:
                kind, exit_code, message = _receive(connection)
                if kind in ("here", "go") and not self._closes:
                    self._heard.release()
                    continue
                if kind == "done":
                    self._done.append(running.pop(connection))
                    continue
                if kind == "here":  # and will wait in vain
                    exit_code, message = 2, f"rank 0 {_ENDED}"
                elif kind == "failed":
                    time.sleep(1)  # this rank may be about to report the same error itself
                else:
                    exit_code, message = 1, f"rank {running[connection]} {_LOST}"
                if is_main_process():
                    self.announce(message, exit_code)
                with contextlib.suppress(OSError):  # nobody reads it
                    print(f"error: {message}", file=sys.stderr, flush=True)
                if not is_main_process():
                    time.sleep(3)  # the launcher looks every second, and shows the log of the rank that left first
                os._exit(exit_code)

    def _send(self, kind: str, number: int = 0, message: str = "") -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it is lost, and the thread will notice
                connection.send_bytes(f"{kind} {number} {message[:_LONGEST_MESSAGE]}".encode())

    def _close_connections(self) -> None:
        for connection in self._connections:
            connection.close()


def _receive(connection: Connection, timeout: float = 5) -> tuple[str, int, str]:
    """What :meth:`FailureWatch._send` has sent; empty if the connection has ended, or after ``timeout`` seconds."""
    with contextlib.suppress(EOFError, OSError, ValueError):
        if connection.poll(timeout):
            kind, number, message = connection.recv_bytes(8 * _LONGEST_MESSAGE).decode().split(" ", 2)
            return kind, int(number), message
    return "", 0, ""


def _watched(connection: socket.socket) -> Connection:
    """A connection that the kernel ends when the other machine has not answered for 20 s."""
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)  # ms; while a message is on its way
    return Connection(connection.detach())


def _store_address() -> tuple[str, int]:
    """Where Paddle's key-value store will listen, as ``paddle.distributed.init_parallel_env`` finds it.

    The port is free until then, and the other ranks can reach it.
    """
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    address = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    host, _, port = address.rpartition(":")
    return host, int(port)
