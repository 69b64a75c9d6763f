"""Exceptions that end a program with a message: errors of the user, and signals."""

import re
import signal


class UserError(Exception):
    """An error that the user can correct: a missing path, a wrong value, an unreadable file.

    The message is one line that names the wrong value and the remedy. The entry points print it without a
    traceback and exit with code 2 (``-debug`` shows the traceback).
    """


class StoppedBySignal(Exception):
    """Training has saved its state and stops because of a signal.

    Attributes:
        exit_code: 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def one_line(error: BaseException) -> str:
    """The message of an exception in one line, without Paddle's stack and source position; its type if it has none."""
    text = str(error).rpartition("Error Message Summary:")[2]
    if "In user code:" in text or "In transformed code:" in text:  # Python's stack, where a graph was built
        text = re.sub(r'^\s*File ".*", line \d+, in .*\n.*$|In (user|transformed) code:', "", text, flags=re.MULTILINE)
    text = re.sub(r"-{5,}|\(at [^()]*:\d+\)|\[operator < \w+ > error\]", " ", text)
    return " ".join(text.split()) or type(error).__name__
