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


@dataclass(frozen=True)
class Measurement:
    """What was measured of one subject.

    Attributes:
        subject: what ran.
        seconds: of one run, for each round.
        flops: floating-point operations of one run, or None.
        images: images that one run takes, or None.
    """

    subject: Subject
    seconds: tuple[float, ...]
    flops: int | None = None
    images: int | None = None

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


class Worker:
    """A process that has built a subject.

    Args:
        subject: what to build.
        peer_python: Python of the subjects that are foreign.

    Raises:
        UserError: it cannot be built; the message says why.
    """

    def __init__(self, subject: Subject, peer_python: Path):
        self.subject = subject
        python = peer_python if subject.is_foreign else sys.executable
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (close() closes it)
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
            raise UserError(
                f"{subject.name}: cannot run {python} ({error.strerror}); set the peers up by python -m venv "
                ".venv-peers && .venv-peers/bin/pip install -r requirements-peers-torch.txt, or give -peer_python"
            ) from error
        try:
            built = self._ask(subject.to_json())
        except BaseException:
            self.close()
            raise
        self.flops, self.images = built["flops"], built["images"]

    def run(self, runs: int = 1) -> float:
        """Run the subject and return the median of the seconds of one run."""
        return float(np.median(self._ask({"runs": runs})["seconds"]))

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
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        self._process.terminate()
        self._process.wait()
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
) -> list[Measurement]:
    """Build all subjects and run them in turn.

    Args:
        subjects: in the order of their turns.
        rounds: turns of each, 1 or more.
        warmup: runs of each before the first round, 1 or more.
        peer_python: see :class:`Worker`.
        progress: is called with what comes next, once for each subject that is built and once for each round.

    Raises:
        UserError: a subject cannot be built or run.
    """
    with ExitStack() as stack:
        workers, runs = [], []
        for subject in subjects:
            progress(f"building {subject.name}")
            worker = stack.enter_context(Worker(subject, peer_python))
            workers.append(worker)
            warm = [worker.run() for _ in range(warmup)]
            runs.append(max(1, math.ceil(MIN_TURN / max(warm[-1], 1e-6))))
        seconds: list[list[float]] = [[] for _ in workers]
        for number in range(1, rounds + 1):
            progress(f"round {number} of {rounds}")
            for worker, count, values in zip(workers, runs, seconds, strict=True):
                time.sleep(PAUSE)
                values.append(worker.run(count))
        return [
            Measurement(worker.subject, tuple(values), worker.flops, worker.images)
            for worker, values in zip(workers, seconds, strict=True)
        ]
