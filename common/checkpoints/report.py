"""What was loaded into a model and, where weights do not fit, the likely reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from paddle import nn

from ..layers.variants import VARIANTS

__all__ = ["LoadReport", "any_starts_with", "has_names_of_pytorch", "likely_cause"]

_SHOWN = 10  # names of each kind in the printed report


@dataclass
class LoadReport:
    """The result of loading weights.

    Attributes:
        source: path or address of the weights.
        loaded: names of the parameters that were loaded.
        missing: names that only the model has.
        unexpected: names that only the weights have.
        mismatched: ``name (shape of the weights) for (shape in the model)``.
        new_parts: parts such as ``head`` that keep their initial values.
        interpolated: ``name (shape of the weights) to (shape in the model)`` of resized position tables.
        renamed: classes of another name in the data, one line each.
        adapted: ``name (shape of the weights) to (shape in the model)`` of the first convolution, where images have
            another number of channels.
        left_out: parts of the weights that the model does without: those that only training uses, and stages.
        note: a further remark.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    new_parts: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def wrong(self) -> list[str]:
        """All that does not fit."""
        return self.mismatched + self.missing + self.unexpected

    def summary(self) -> str:
        """The counts."""
        return (
            f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.mismatched)} of another shape"
        )

    def __str__(self) -> str:
        lines = [f"weights {self.source}: {self.summary()}"]
        missing, unexpected, left_out = self.missing, self.unexpected, self.left_out
        if self.new_parts:  # the only differences, which one line each then says
            missing, unexpected = [], []
            left_out = [*left_out, *dict.fromkeys(name.partition(".")[0] for name in self.unexpected)]
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("other shape", self.mismatched),
            ("interpolated", self.interpolated),
            ("adapted to the channels of the images", self.adapted),
        ):
            lines += [f"  {kind}: {name}" for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f"  {kind}: and {len(names) - _SHOWN} more")
        if self.new_parts:
            lines.append(f"  new {', '.join(self.new_parts)}: train it before use")
        if left_out:
            lines.append(f"  skipped {', '.join(left_out)}: not used by this model")
        if self.note:
            lines.append(f"  {self.note}")
        lines += [f"warning: {line}" for line in self.renamed]
        return "\n".join(lines)


def any_starts_with(names: Iterable[str], prefix: str | tuple[str, ...]) -> bool:
    return any(name.startswith(prefix) for name in names)


def has_names_of_pytorch(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether BatchNorm's statistics are called as in PyTorch, which transposes the weights of linear layers."""
    return any(name.endswith("running_mean") for name in weights)


def likely_cause(model: nn.Layer, weights: Mapping[str, np.ndarray], report: LoadReport) -> str:
    """Why weights do not fit a model, with the remedy where there is one."""
    backbone = getattr(model, "backbone", model)
    if has_names_of_pytorch(weights):
        return (
            "the names are PyTorch's; rename running_mean to _mean and running_var to _variance, leave out "
            "num_batches_tracked, and transpose the weights of linear layers"
        )
    if backbone is not model and not any_starts_with(weights, "backbone.") and any_starts_with(weights, "stages."):
        return "the file contains only a classifier or a backbone; give the weights of a whole model"
    if all(name.startswith(tuple(getattr(model, "head_prefixes", ()))) for name in report.wrong):
        return f"its head differs, perhaps in the number of classes: {report.wrong[0]}; use data of its classes"
    if backbone is not model and not any_starts_with(report.wrong, "backbone."):
        return f"its backbone fits, but the rest is of another model or task: the first difference is {report.wrong[0]}"
    weights = {name.removeprefix("backbone."): array for name, array in weights.items()}
    stem = weights.get("stages.0.merging.conv.bias")
    if stem is None or stem.ndim != 1:
        return "these are not the weights of a Pale Transformer"
    blocks = {match.groups() for name in weights if (match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4))
    own = (getattr(backbone, "depths", depths), getattr(backbone, "out_channels", stem.shape)[0])
    if own != (depths, stem.shape[0]):
        variants = [
            name for name, row in VARIANTS.items() if (row["embed_dim"], tuple(row["depths"])) == (*stem.shape, depths)
        ]
        known = (
            f"{variants[0]} weights"
            if variants
            else f"weights of a model with depths {depths} and {stem.shape[0]} channels"
        )
        return f"these are {known}; set MODEL.NAME, or the backbone's variant, to match"
    return report.note or f"the first difference is {report.wrong[0]}"
