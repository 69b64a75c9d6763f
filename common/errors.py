"""Exceptions that end a program with a message: errors of the user, and signals; text that is safe to print."""

import os
import re
import signal
import unicodedata
from pathlib import Path
from typing import Literal

_MESSAGE = 2000  # characters
_JOINERS = "\u200c\u200d"  # format characters that texts need, such as Persian and combined emoji


def printable(text: str, limit: int = _MESSAGE) -> str:
    """Make a text from a file or a file name safe to print, in one line.

    Control characters, among them line breaks and terminal escapes, characters that reorder text, and bytes that are
    no text become escapes such as ``\\x1b``; all others, blanks and backslashes included, stay as they are. The middle
    of a text of more than ``limit`` characters is left out.
    """
    text = _shorten(text, limit)
    if not text.isprintable():
        text = _shorten("".join(map(_escape, text)), limit)
    return text


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 3]} ... {text[-(limit // 2 - 3) :]}"


def _escape(character: str) -> str:
    # Control, format, surrogate, line separator, paragraph separator. Python calls other blanks unprintable as well.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS:
        return character.encode("unicode_escape", "surrogatepass").decode()
    return character


class UserError(Exception):
    """An error that the user can correct: a missing path, a wrong value, an unreadable file.

    The message is one line that names the wrong value and the remedy; it is made :func:`printable`. The entry points
    print it without a traceback and exit with code 2 (``-debug`` shows the traceback).
    """

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


class StoppedBySignal(Exception):
    """Training has saved its state and stops because of a signal.

    Attributes:
        exit_code: 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def missing_hint(path: str | Path) -> str:
    """What to add to the message that a file is missing: the cause, if it is the way in which the path is written.

    It may have been written on Windows, or have accents as characters of their own (Unicode NFD, usual on macOS) where
    the disk has them composed (NFC), or the reverse; both look the same.
    """
    if "\\" in str(path) and os.sep == "/":
        return "; its backslashes separate no folders here: write /"
    missing = Path(path)
    while missing.name and not os.path.exists(missing.parent):  # noqa: PTH110  (Path's raises when a name is too long)
        missing = missing.parent
    form: Literal["NFC", "NFD"] = "NFD" if unicodedata.is_normalized("NFC", missing.name) else "NFC"
    name = unicodedata.normalize(form, missing.name)
    if name != missing.name and os.path.exists(missing.parent / name):  # noqa: PTH110
        return (
            f"; {missing.parent} has a name that looks the same, written with "
            f"{'composed' if form == 'NFC' else 'decomposed'} characters (Unicode {form}): write it so, or rename it"
        )
    return ""


def one_line(error: BaseException) -> str:
    """The message of an exception in one line, without Paddle's stack and source position; its type if it has none."""
    text = str(error).rpartition("Error Message Summary:")[2]
    if "In user code:" in text or "In transformed code:" in text:  # Python's stack, where a graph was built
        text = re.sub(r'^\s*File ".*", line \d+, in .*\n.*$|In (user|transformed) code:', "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*-{5,}\s*$|\s*\(at \S+:\d+\)|\s*\[operator < \w+ > error\]", "", text, flags=re.MULTILINE)
    lines = (line.strip() for line in text.split("\n"))
    return printable(" ".join(filter(None, lines))) or type(error).__name__
