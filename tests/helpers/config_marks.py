"""The marks that say where each value of a configuration comes from; see CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path


def read_marks(path: Path, free: str) -> tuple[str, list[str]]:
    """Look for values without a mark, on their own line or a section's that they are in.

    Keys in capitals need none: they are this project's own, and say how often to evaluate, to save and the like.

    Args:
        free: pattern of further keys that need none.

    Returns:
        The comments that begin a line, as one text, and the lines of the values without a mark.
    """
    text = path.read_text(encoding="utf-8")
    header = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    needs_none = re.compile(rf"({free}|(?!FPN\b)[A-Z_]+)\b")
    unmarked, marked = [], []
    for line in text.splitlines():
        content = line.strip().removeprefix("- ")
        if not content or content.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        marked = [level for level in marked if level[0] < indent]
        mark = bool(re.search(r"#.*\[[PCA]\b", line) or needs_none.match(content)) or any(m for _, m in marked)
        if not mark and content.partition("#")[0].rstrip().partition(":")[2]:
            unmarked.append(line)
        marked.append((indent, mark))
    return header, unmarked
