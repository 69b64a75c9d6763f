"""What a check of annotations found: problems by kind, and a table of the objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.data.class_table import column_width, pad
from common.errors import UserError
from object_detection.problems import ACTIONS, PROBLEMS

__all__ = ["AnnotationReport", "Finding", "Findings"]

_LISTED = 10  # classes that a message names


@dataclass
class Finding:
    """The problems of one kind.

    Attributes:
        kind: a key of ``PROBLEMS``.
        action: what is done about them, a key of ``ACTIONS``.
        count: how many there are.
        examples: what was found where; the first only, unless each is an error and all were asked for.
    """

    kind: str
    action: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def errors(self) -> list[str]:
        """Each example with its remedies, in a line."""
        problem = PROBLEMS[self.kind]
        others = [action for action in problem.actions if action != "error"]
        setting = f", or set ON_PROBLEM.{self.kind} to {' or '.join(others)}" if others else ""
        return [f"{example}; {problem.remedy}{setting}" for example in self.examples]

    def counted(self) -> str:
        """How many there are, and what is done about them."""
        return f"{self.kind}: {self.count:,} {PROBLEMS[self.kind].what} ({ACTIONS[self.action]})"

    def __str__(self) -> str:
        return f"{self.counted()}, first {self.examples[0]}"


class Findings:
    """Problems as they are found.

    Args:
        actions: what to do about each kind.
        for_evaluation: keep what only training changes.
        list_all: remember every error, not only the first of each kind.
    """

    def __init__(self, actions: Mapping[str, str], for_evaluation: bool, list_all: bool):
        self._actions = actions
        self.for_evaluation, self._list_all = for_evaluation, list_all
        self._by_kind: dict[str, Finding] = {}

    def action(self, kind: str) -> str:
        """What is done about a kind."""
        action = self._actions[kind]
        return "keep" if self.for_evaluation and PROBLEMS[kind].training_only and action != "error" else action

    def add(self, kind: str, numbers: Iterable[int], describe: Callable[[int], str]) -> str:
        """Count problems of one kind, and return what to do about them.

        Args:
            numbers: of the entries that have it.
            describe: says what is wrong with an entry.
        """
        action = self.action(kind)
        if self.for_evaluation and PROBLEMS[kind].training_alone and action != "error":
            return action
        for number in numbers:
            finding = self._by_kind.setdefault(kind, Finding(kind, action))
            finding.count += 1
            if not finding.examples or (action == "error" and self._list_all):
                finding.examples.append(describe(number))
        return action

    def all(self) -> list[Finding]:
        """In the order of the table of kinds."""
        return [self._by_kind[kind] for kind in PROBLEMS if kind in self._by_kind]

    def errors(self) -> list[Finding]:
        return [finding for finding in self.all() if finding.action == "error"]

    def raise_errors(self) -> None:
        """Raise the first error with the number of others, unless all are to be listed.

        Raises:
            UserError: there is an error.
        """
        found = self.errors()
        if not found or self._list_all:
            return
        others = sum(finding.count for finding in found) - 1
        more = f" (and {others:,} more; -check_data lists them all)" if others else ""
        raise UserError(found[0].errors()[0] + more)


@dataclass
class AnnotationReport:
    """What an annotation file holds; printed, a table.

    Attributes:
        split: what the data is called: ``"train"`` or ``"val"``.
        class_names: of the categories, in their order.
        num_images: that are used.
        num_empty: of them, without any object.
        smallest, largest: width and height; either may be those of different images.
        objects: used, without crowds, of each class by area, small, medium and large as COCO has them: int64
            [classes, 3].
        num_crowds: annotations that stand for several objects.
        findings: the problems, by kind.
        problems: one line for each that cannot be used; empty unless all were asked for.
        num_classes: of the model.
    """

    split: str
    class_names: list[str]
    num_images: int
    num_empty: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    objects: np.ndarray
    num_crowds: int
    findings: Sequence[Finding]
    problems: list[str]
    num_classes: int

    def warnings(self) -> list[str]:
        """What was done about problems, and what is suspicious but may be meant."""
        lines = [str(finding) for finding in self.findings if finding.action != "error"]
        if self.num_classes > len(self.class_names):
            lines.append(
                f"the model has {self.num_classes} classes, the {self.split} data {len(self.class_names)}; the others "
                "are never learnt (num_classes)"
            )
        return lines

    def __str__(self) -> str:
        (low_width, low_height), (high_width, high_height) = self.smallest, self.largest
        width = max(5, column_width(self.class_names))
        lines = [
            f"{self.split} data: {self.num_images:,} images of {low_width}x{low_height} to {high_width}x{high_height} "
            f"pixels ({self.num_empty:,} without objects), {self.objects.sum():,} objects, {self.num_crowds:,} crowds",
            f"  {'class':>5}  {pad('name', width)}  {'objects':>9}  {'small':>9}  {'medium':>9}  {'large':>9}",
        ]
        lines += [
            f"  {number:>5}  {pad(name, width)}  {sum(sizes):>9,}  " + "  ".join(f"{size:>9,}" for size in sizes)
            for number, (name, sizes) in enumerate(zip(self.class_names, self.objects.tolist(), strict=True))
        ]
        lines += [f"  warning: {line}" for line in self.warnings()]
        lines += [f"  {finding.counted()}" for finding in self.findings if finding.action == "error"]
        return "\n".join(lines + self.problems)
