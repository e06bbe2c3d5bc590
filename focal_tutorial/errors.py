"""The one exception for what a user can put right: a file, an option, an annotation."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from outside the program. The message says what is wrong, where, and what to do about it.

    The command line prints it as one line and exits with status 2; a traceback would add nothing.
    """
