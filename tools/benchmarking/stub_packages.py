"""Import modules of a package without what its ``__init__.py`` would import with them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

__all__ = ["register_packages"]


def register_packages(root: Path, *names: str) -> None:
    """Register empty packages, so that only their modules run when they are imported.

    Args:
        root: folder that the packages lie in.
        names: dotted, parents before their children.
    """
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)
