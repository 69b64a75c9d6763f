"""Which folder may import which; CONTRIBUTING.md says why."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.programs import ROOT

TASKS = {"image_classification", "semantic_segmentation", "object_detection"}
FOUNDATION = {"errors", "runtime"}
MODEL = {
    "layers",
    "pale_attention",
    "ablation",
    "fuse",
    "timm_interface",
    "model_names",
    "pale_transformer",
    "pale_features",
    "flops",
    "transforms",
}
# What each room of common may import besides itself.
ALLOWED = {
    "errors": set(),
    "finite_outputs": {"errors"},
    "schema": FOUNDATION,
    "layers": set(),
    "runtime": {"errors", "version"},
    "tasks": set(),
    "checkpoints": {*FOUNDATION, "schema", "data", "layers", "version"},
    "data": {*FOUNDATION, "schema", "version"},
    "demo_data": {*FOUNDATION, "data"},
    "pictures": {*FOUNDATION, "data"},
    "toolkits": {*FOUNDATION, "checkpoints"},
    "paddleseg": {*MODEL, "toolkits"},
    "paddledet": {*MODEL, "checkpoints", "toolkits"},
    "training": {
        *FOUNDATION,
        *MODEL,
        "schema",
        "checkpoints",
        "data",
        "pictures",
        "tasks",
        "version",
        "finite_outputs",
    },
    "inference": {
        *FOUNDATION,
        *MODEL,
        "schema",
        "checkpoints",
        "data",
        "pictures",
        "training",
        "version",
        "finite_outputs",
    },
    **{module: {*FOUNDATION, *MODEL, "data", "checkpoints"} for module in MODEL - {"layers"}},
}


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports anywhere in it, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms of ``common`` among dotted names."""
    parts = (name.split(".") for name in names if name.startswith("common."))
    return {"version" if part[1] == "__version__" else part[1] for part in parts}


def test_no_import_within_common_runs_back_up():
    for path in (ROOT / "common").rglob("*.py"):
        room = path.relative_to(ROOT / "common").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        used = rooms_of(imports(path)) - {room}
        assert used <= ALLOWED[room], f"{path.relative_to(ROOT)} must not import {sorted(used - ALLOWED[room])}"


def test_the_wheel_contains_the_rooms_that_its_rooms_import():
    wheel = set(re.findall(r'"pale_transformer\.(\w+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    wheel |= {path.stem for path in (ROOT / "common").glob("*.py")} | {"version"}
    for room in wheel & set(ALLOWED):
        assert ALLOWED[room] <= wheel, f"{room} is in the wheel, {sorted(ALLOWED[room] - wheel)} is not"


def test_no_files_of_common_import_each_other_in_a_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "common").rglob("*.py")}
    graph = {
        module: {parent for name in imports(path) for parent in (name, name.rpartition(".")[0]) if parent in files}
        for module, path in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("folder", ["common", *sorted(TASKS)])
def test_a_task_imports_no_other_task_and_nothing_imports_the_tools(folder):
    forbidden = {"tools", *TASKS} - {folder}
    for path in (ROOT / folder).rglob("*.py"):
        used = {name.partition(".")[0] for name in imports(path)} & forbidden
        assert not used, f"{path.relative_to(ROOT)} must not import {sorted(used)}"
