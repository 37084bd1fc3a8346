"""The errors that a user can cause, and how they reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user: bad file, table, key, shape, port, disk.

    The message is the whole interface: it names the file, key or sample and says what to do. Entry points print it
    without a traceback and exit with code 2; everything else is a bug and keeps its traceback.
    """


def exit_on_user_error(main: Callable[[], int | None]) -> int:
    """Run an entry point; turn a ``UserError`` into one line on stderr and exit code 2."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
