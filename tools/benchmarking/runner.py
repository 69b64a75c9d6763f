"""What a worker times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Runner", "TimedRunner"]


class Runner(Protocol):
    """A subject that was built and can be run again and again.

    One that knows what its parts cost says so, in dictionaries, by a method ``parts()``.

    Attributes:
        flops: floating-point operations of one run, two for a multiply-add; None where they cannot be counted.
        images: images that one run takes; None for what takes none.
    """

    flops: int | None
    images: int | None

    def run(self) -> float:
        """Do the work once and return the seconds that it took."""


@dataclass
class TimedRunner:
    """A :class:`Runner` of a function that does the work and is done when it returns."""

    work: Callable[[], Any]
    flops: int | None = None
    images: int | None = None

    def run(self) -> float:
        began = time.perf_counter()
        self.work()
        return time.perf_counter() - began
