"""The one exception that means "the input is wrong, not the program"."""


class UserError(Exception):
    """A mistake that the user can mend: a missing path, a wrong value, an unreadable file.

    The message is one line that names the offending thing and the remedy. The entry points print it without a
    traceback and exit with code 2 (``-debug`` shows the traceback).
    """
