"""Memory that a training leaves behind in a process that goes on."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def give_back() -> None:
    """Return what nobody holds any more to the operating system.

    A sweep runs trial after trial in one process, each in a thread of its own, and glibc keeps what was freed in a heap
    for every thread: without this, such a process grows by what one training held (300 MB with six small cameras) with
    every trial. Elsewhere than on glibc, only garbage is collected.
    """
    gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return trim
