"""Worker processes, run in turn, and the medians of what they need.

All subjects are built first and take turns, A B C A B C, so that a machine that grows slower meets all of them. While
one computes, the others wait for their next request.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from tools.benchmarking.subjects import Subject

__all__ = ["Measurement", "Worker", "measure"]

# Seconds that a turn should at least last: the time of a short run is the median of several.
MIN_TURN = 0.5
# Seconds between two turns. OpenMP's threads keep a core busy for 0.2 s after their last work.
PAUSE = 0.25
# Seconds that a process may take to leave.
PATIENCE = 10.0


@dataclass(frozen=True)
class Measurement:
    """What was measured of one subject.

    Attributes:
        subject: what ran.
        seconds: of one run, for each round.
        flops: floating-point operations of one run, or None.
        images: images that one run takes, or None.
        versions: packages of the process.
        memory_before: bytes that the process held when it was built, or None.
        memory_peak: the most bytes that it ever held while it ran, or None.
        parts: what each part of it cost, for each round; empty where nobody counts.
    """

    subject: Subject
    seconds: tuple[float, ...]
    flops: int | None = None
    images: int | None = None
    versions: str = ""
    memory_before: int | None = None
    memory_peak: int | None = None
    parts: tuple[list[dict[str, Any]], ...] = ()

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, (25, 75))
        return float(low), float(high)

    @property
    def flops_per_second(self) -> float | None:
        return self.flops / self.median if self.flops else None

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.median if self.images else None

    @property
    def memory_growth(self) -> int | None:
        """Bytes that running added to what was built."""
        return None if self.memory_peak is None else self.memory_peak - self.memory_before


class Worker:
    """A process that has built a subject.

    Args:
        subject: what to build.
        peer_python: Python of the subjects that are foreign.

    Attributes:
        memory: ``before`` and ``peak`` in bytes after the last run, or None.
        parts: what each part of the last runs cost, or None.

    Raises:
        UserError: it cannot be built; the message says why.
    """

    def __init__(self, subject: Subject, peer_python: Path):
        self.subject, self.memory, self.parts = subject, None, None
        python = peer_python if subject.is_foreign else sys.executable
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see close)
        try:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name("worker.py"))],
                env=os.environ | subject.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            self._stderr.close()
            raise UserError(
                f"{subject.name}: cannot run {python} ({error.strerror}): python -m venv .venv-peers && "
                ".venv-peers/bin/pip install -r requirements-peers-torch.txt, or give -peer_python"
            ) from error
        try:
            built = self._ask(subject.to_json())
        except BaseException:
            self.close()
            raise
        self.flops, self.images, self.versions = built["flops"], built["images"], built["versions"]

    def run(self, runs: int = 1) -> float:
        """Run the subject and return the median of the seconds of one run."""
        answer = self._ask({"runs": runs})
        self.memory, self.parts = answer["memory"], answer["parts"]
        return float(np.median(answer["seconds"]))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise UserError(f"{self.subject.name}: {answer['error']}")
        if "failure" in answer:
            print(answer["traceback"], file=sys.stderr)
            raise RuntimeError(f"{self.subject.name}: {answer['failure']}")
        return answer

    def _last_words(self) -> str:
        """Why the process is gone: what it printed last, or the signal."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        if code < 0 or not lines:
            return f"its process ended with code {code}; lower the batch if memory is short"
        return lines[-1]

    def close(self) -> None:
        """End the process: it leaves by itself when nothing more can be asked, unless it is busy."""
        try:
            self._process.communicate(timeout=PATIENCE)  # closes its stdin
        except subprocess.TimeoutExpired:
            self._process.kill()  # Paddle's handler of SIGTERM allocates memory and may wait for itself for ever
            self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def measure(
    subjects: Sequence[Subject],
    rounds: int,
    warmup: int,
    peer_python: Path,
    progress: Callable[[str], None] = lambda text: None,
    leave_out: Callable[[Subject, UserError], None] | None = None,
) -> list[Measurement]:
    """Build all subjects and run them in turn.

    Args:
        subjects: in the order of their turns.
        rounds: turns of each, 1 or more.
        warmup: runs of each before the first round, 1 or more.
        peer_python: see :class:`Worker`.
        progress: is called with what comes next.
        leave_out: is told of a subject that cannot be built or warmed up, and the others are measured; None raises.

    Raises:
        UserError: a subject cannot be built or run.
    """
    with ExitStack() as stack:
        turns: list[tuple[Worker, int, list[float], list]] = []
        for subject in subjects:
            progress(f"building {subject.name}")
            try:
                worker = stack.enter_context(Worker(subject, peer_python))
                for _ in range(warmup):
                    began = time.perf_counter()
                    worker.run()
            except UserError as error:
                if leave_out is None:
                    raise
                leave_out(subject, error)
                continue
            turns.append((worker, math.ceil(MIN_TURN / (time.perf_counter() - began)), [], []))
        for number in range(1, rounds + 1):
            for worker, runs, seconds, parts in turns:
                progress(f"round {number} of {rounds}, {worker.subject.name}")
                time.sleep(PAUSE)
                seconds.append(worker.run(runs))
                parts += [worker.parts] if worker.parts else []
        return [
            Measurement(
                worker.subject,
                tuple(seconds),
                worker.flops,
                worker.images,
                worker.versions,
                *((worker.memory["before"], worker.memory["peak"]) if worker.memory else (None, None)),
                tuple(parts),
            )
            for worker, _, seconds, parts in turns
        ]
