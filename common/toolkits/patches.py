"""Replacing functions of a toolkit that do not work on the Paddle of today, where they do not and only there."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.base import unique_name

__all__ = ["GRAD_SCALER", "Mend", "apply_mends"]


@dataclass(frozen=True)
class Mend:
    """A function that does not work, and one that does.

    Attributes:
        owner, attribute: where callers find the function.
        replacement: has the original's arguments and results.
        reason: what goes wrong without it.
        broken_on: beginnings of the versions of Paddle on which the toolkit's pinned version needs it.
        works: uses a function in the original's place, on something small; what it raises counts as no.
        original: the function as it was before any mend.
    """

    owner: Any
    attribute: str
    replacement: Callable
    reason: str
    broken_on: tuple[str, ...]
    works: Callable[[Callable], bool]
    original: Callable

    @property
    def name(self) -> str:
        """The function's name with its class or module."""
        return f"{self.owner.__name__}.{self.attribute}"

    def needed(self) -> bool:
        """Try the original. Neither random numbers nor Paddle's automatic names are used up."""
        try:
            with _leaving_no_trace():
                return not self.works(self.original)
        except Exception:
            return True

    def apply(self) -> None:
        setattr(self.owner, self.attribute, self.replacement)


@contextmanager
def _leaving_no_trace() -> Iterator[None]:
    paddles, numpys = paddle.get_rng_state(), np.random.get_state()
    try:
        with unique_name.guard(), redirect_stdout(io.StringIO()):
            yield
    finally:
        paddle.set_rng_state(paddles)
        np.random.set_state(numpys)


def apply_mends(mends: Iterable[Mend]) -> list[Mend]:
    """Replace the functions that do not work here.

    Returns:
        The mends that were needed.
    """
    needed = [mend for mend in mends if mend.needed()]
    for mend in needed:
        mend.apply()
    return needed


# ---- what more than one toolkit needs: mixed precision with parameter groups

_original_minimize = paddle.amp.GradScaler.minimize


def _minimize(self: paddle.amp.GradScaler, optimizer: paddle.optimizer.Optimizer, *args: Any, **kwargs: Any) -> tuple:
    """Unscale the gradients, step unless they overflowed, and adapt the scale."""
    if not isinstance(optimizer._parameter_list[0], dict):
        return _original_minimize(self, optimizer, *args, **kwargs)
    self.step(optimizer)
    self.update()
    return None, None


def _minimizes_with_groups(minimize: Callable) -> bool:
    weight = paddle.create_parameter([1], "float32", default_initializer=nn.initializer.Constant(3.0))
    optimizer = paddle.optimizer.SGD(1.0, parameters=[{"params": [weight], "learning_rate": 0.5}])
    loss = (2.0 * weight).sum()
    loss.backward()
    minimize(paddle.amp.GradScaler(enable=False), optimizer, loss)
    return weight.numpy()[0] == 2.0


GRAD_SCALER = Mend(
    paddle.amp.GradScaler,
    "minimize",
    _minimize,
    "cannot take an optimizer with parameter groups: TypeError with mixed precision",
    ("2.6", "3."),
    _minimizes_with_groups,
    _original_minimize,
)
