"""The watch that ends all ranks when one fails. Connections of the test play the other ranks."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from common.errors import UserError
from common.runtime import distributed, failure_watch
from common.runtime.failure_watch import FailureWatch
from tests.helpers.programs import ROOT

RANKS = 3

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Watched._exit


@pytest.fixture
def port(monkeypatch) -> int:
    """The port of a job of three ranks, of which this process is rank 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PADDLE_MASTER", f"127.0.0.1:{port}")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(RANKS))
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setattr(distributed, "_meet", None)
    return port


class Watched:
    """A watch, the connections of the other ranks to it, and the exit code that its thread has chosen."""

    def __init__(self, monkeypatch, port: int):
        self.exit_codes: list[int] = []
        monkeypatch.setattr(failure_watch.os, "_exit", self._exit)
        with ThreadPoolExecutor() as pool:
            ranks = [pool.submit(connect, port, f"hello {rank} ") for rank in range(1, RANKS)]
            self.watch = FailureWatch()
            self.ranks = [rank.result() for rank in ranks]
        assert [received(rank) for rank in self.ranks] == [b"go 0 "] * 2

    def _exit(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)
        raise SystemExit  # ends the thread

    def wait(self) -> list[int]:
        self.watch._thread.join(timeout=10)
        assert not self.watch._thread.is_alive()
        return self.exit_codes


@pytest.fixture
def watched(monkeypatch, port) -> Watched:
    return Watched(monkeypatch, port)


def connect(port: int, greeting: str) -> Connection:
    """Connect as another rank does, and send a line."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection = Connection(socket.create_connection(("127.0.0.1", port)).detach())
        except ConnectionRefusedError:
            assert time.monotonic() < deadline  # another program may have taken the port
            continue
        connection.send_bytes(greeting.encode())
        return connection


def received(connection: Connection) -> bytes:
    """The next message of rank 0, which must not be long in coming."""
    assert connection.poll(10)
    return connection.recv_bytes()


def test_a_rank_that_does_not_start_is_named_to_all(monkeypatch, port):
    monkeypatch.setattr(failure_watch, "_START_LIMIT", 0.5)
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(connect, port, greeting) for greeting in ("hello 1 ", "GET / HTTP/1.1")]
        with pytest.raises(UserError, match=r"^rank 2 did not start within"):
            FailureWatch()
        assert received(others[0].result()).startswith(b"failed 2 rank 2 did not start within")


def test_a_rank_that_does_not_find_rank_0_names_its_address(monkeypatch, port):
    monkeypatch.setattr(failure_watch, "_START_LIMIT", 0.5)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    with pytest.raises(UserError, match=rf"^rank 1 did not reach rank 0 at 127\.0\.0\.1:{port} within"):
        FailureWatch()


def test_all_ranks_are_done_together(watched):
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(watched.watch.close)
        watched.ranks[0].send_bytes(b"done 0 ")
        assert not watched.ranks[0].poll(0.5)  # the other one is still running
        watched.ranks[1].send_bytes(b"done 0 ")
        closing.result()
    assert [received(rank) for rank in watched.ranks] == [b"done 0 "] * 2
    assert not watched.exit_codes


def test_no_rank_goes_on_before_all_have_come(watched):
    for _ in range(2):
        meeting = threading.Thread(target=distributed.wait_for_all_ranks, daemon=True)
        meeting.start()
        watched.ranks[0].send_bytes(b"here 0 ")
        assert not watched.ranks[0].poll(0.5)  # the other one is not there yet
        watched.ranks[1].send_bytes(b"here 0 ")
        meeting.join(10)
        assert [received(rank) for rank in watched.ranks] == [b"go 0 "] * 2
    for rank in watched.ranks:
        rank.send_bytes(b"done 0 ")
    watched.watch.close()


@pytest.mark.parametrize("ended", [0, 1])
def test_no_rank_waits_for_one_that_has_ended(watched, capsys, ended):
    """As with ``-h`` in the command of one machine."""
    if ended:
        watched.ranks[0].send_bytes(b"done 0 ")
        with pytest.raises(UserError, match="rank 1 has ended before the others; run the same command on all machines"):
            distributed.wait_for_all_ranks()
        watched.ranks[1].send_bytes(b"done 0 ")
        watched.watch.close()
    else:
        closing = threading.Thread(target=watched.watch.close, daemon=True)
        closing.start()
        time.sleep(0.3)
        watched.ranks[0].send_bytes(b"here 0 ")
        assert watched.wait() == [2]
        assert "rank 0 has ended before the others" in capsys.readouterr().err
        closing.join(10)


def test_a_connection_that_ends_is_a_lost_rank(watched, capsys):
    watched.ranks[0].close()
    assert watched.wait() == [1]
    assert capsys.readouterr().err.startswith("error: rank 1 is lost: ")
    assert received(watched.ranks[1]).startswith(b"failed 1 rank 1 is lost: ")


def test_a_failing_rank_ends_all_with_its_message_and_exit_code(watched, capsys):
    watched.ranks[0].send_bytes(b"failed 2 rank 1: no images")
    assert watched.wait() == [2]
    assert capsys.readouterr().err == "error: rank 1: no images\n"
    assert [received(rank) for rank in watched.ranks] == [b"failed 2 rank 1: no images"] * 2


def test_a_rank_that_reports_its_own_failure_does_not_report_another(watched, capsys):
    watched.ranks[0].send_bytes(b"failed 2 rank 1: no images")
    time.sleep(0.3)  # until the thread has read it
    assert not watched.exit_codes
    watched.watch.announce("no images", 2)
    watched.watch._thread.join(timeout=1.5)
    assert not watched.exit_codes
    assert not capsys.readouterr().err
    assert [received(rank) for rank in watched.ranks] == [b"failed 2 no images"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("event", ["limit", "SIGTERM"])
def test_a_rank_that_is_lost_while_paddle_connects_the_ranks(monkeypatch, port, event):
    """Paddle then waits, and no Python thread can run, but the start limit holds, and SIGTERM ends the process."""
    for name, value in (("DISTRI_BACKEND", "gloo"), ("TRAINERS_NUM", "2"), ("CURRENT_ENDPOINT", "127.0.0.1:1")):
        monkeypatch.setenv(f"PADDLE_{name}", value)
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", "127.0.0.1:1,127.0.0.1:2")
    program = (
        "from common.runtime import command_line, failure_watch\n"
        "failure_watch._START_LIMIT = 4\n"
        "command_line.run(lambda argv: print('connected'))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            rank = connect(port, "hello 1 ")
            assert received(rank) == b"go 0 "
            if event == "SIGTERM":
                time.sleep(1)
                process.terminate()
            output, _ = process.communicate(timeout=15)
        finally:
            process.kill()
    assert process.returncode == (-signal.SIGTERM if event == "SIGTERM" else 1)
    assert ("init_parallel_env" in output) == (event == "limit")
    assert "connected" not in output
    assert "FatalError" not in output
