"""How a program ends other than by finishing: a mistake of the user's, or a signal."""

import re
import signal


class UserError(Exception):
    """A mistake that the user can correct: a missing path, a wrong value, an unreadable file.

    The message is one line that names the offending thing and the remedy. The entry points print it without a
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
    """What an exception says, in one line: without the stack and the source position that Paddle adds, or its name."""
    text = str(error).rpartition("Error Message Summary:")[2]
    if "In user code:" in text or "In transformed code:" in text:  # Python's stack, where a graph was built
        text = re.sub(r'^\s*File ".*", line \d+, in .*\n.*$|In (user|transformed) code:', "", text, flags=re.MULTILINE)
    text = re.sub(r"-{5,}|\(at [^()]*:\d+\)|\[operator < \w+ > error\]", " ", text)
    return " ".join(text.split()) or type(error).__name__
