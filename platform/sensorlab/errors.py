"""The errors that a user can cause, and how they reach the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """A mistake of the user: bad file, table, key, shape, port, disk.

    The message is the whole interface: it names the file, key or sample and says what to do. Entry points print it
    without a traceback and exit with code 2; everything else is a bug and keeps its traceback.
    """


def exit_on_user_error(main: Callable[[], int | None]) -> int:
    """Run an entry point; turn a ``UserError`` into one line on stderr and exit code 2, an interrupt into 130."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def leave_on_interrupt() -> Iterator[None]:
    """While a program imports what it needs, SIGINT ends it at once, with exit code 130 and without a traceback.

    There is nothing to clean up yet, and an exception in the middle of an import may be taken for a failed import.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
