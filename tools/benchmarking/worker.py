"""A process that builds one subject and runs it when asked.

It reads JSON lines from stdin: first the subject, then ``{"runs": N}``. It answers each with a line on stdout: what was
built, then ``{"seconds": [...], "memory": ..., "parts": ...}``; or ``{"error": TEXT}`` for a mistake of the user's and
``{"failure": TEXT, "traceback": TEXT}`` for any other exception. It must start in any Python, so it imports nothing but
what the subject needs.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

# At the end, because the project may be installed beside the packages of another Python than this one.
sys.path[:] = [*sys.path[1:], str(Path(__file__).resolve().parents[2])]

from common.errors import UserError, one_line  # noqa: E402
from tools.benchmarking.machine import installed_versions  # noqa: E402
from tools.benchmarking.memory import PeakMemory  # noqa: E402
from tools.benchmarking.subjects import Model, from_json  # noqa: E402


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print to stdout

    def answer(**content) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        subject = from_json(json.loads(sys.stdin.readline()))
        runner = subject.build()
        parts = getattr(runner, "parts", lambda: None)
        memory = PeakMemory(subject.device) if isinstance(subject, Model) else None
        answer(flops=runner.flops, images=runner.images, versions=installed_versions())
        for line in sys.stdin:
            seconds = [runner.run() for _ in range(json.loads(line)["runs"])]
            answer(seconds=seconds, memory=memory and memory.read(), parts=parts())
    except UserError as error:
        answer(error=str(error))
    except Exception as error:
        answer(failure=f"{type(error).__name__}: {one_line(error)}", traceback=traceback.format_exc())


if __name__ == "__main__":
    main()
