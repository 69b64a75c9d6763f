"""A process that builds one subject and runs it when asked.

It reads JSON lines from stdin: first the subject, then ``{"runs": N}``. It answers each with a line on stdout: what was
built, then ``{"seconds": [...]}``; or ``{"error": TEXT}`` for a mistake of the user's and ``{"failure": TEXT}`` for any
other exception. It must start in any Python, so it imports nothing but what the subject needs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# At the end, because the project may be installed beside the packages of another Python than this one.
sys.path[:] = [*sys.path[1:], str(Path(__file__).resolve().parents[2])]

from common.errors import UserError, one_line  # noqa: E402
from tools.benchmarking.subjects import from_json  # noqa: E402


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print to stdout

    def answer(**content) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        runner = from_json(json.loads(sys.stdin.readline())).build()
        answer(flops=runner.flops, images=runner.images)
        for line in sys.stdin:
            answer(seconds=[runner.run() for _ in range(json.loads(line)["runs"])])
    except UserError as error:
        answer(error=str(error))
    except Exception as error:
        answer(failure=f"{type(error).__name__}: {one_line(error)}")


if __name__ == "__main__":
    main()
