"""Where the time of a step goes, without making the step wait for the device."""

from __future__ import annotations

import time

import torch

PARTS = ("copy", "prepare", "forward", "backward", "optimizer")  # prepare: resizing, and callbacks on the batch


class StepTimer:
    """Adds up the time of each part of the steps of an interval.

    On a GPU a part ends when the device has done its work, which the CPU does not wait for: events are put between the
    parts and read when the interval is reported. On the CPU a part ends when its call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._steps = 0
        self._last = 0.0
        self._events: list[tuple[str | None, torch.cuda.Event]] = []  # None: the begin of a step

    def start(self) -> None:
        """The wait for data is over."""
        if self._cuda:
            self._put(None)
        else:
            self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """``part`` has taken the time since the last call."""
        if self._cuda:
            self._put(part)
            return
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def count_step(self) -> None:
        self._steps += 1

    def collect(self) -> dict[str, float]:
        """Mean seconds per step of each part since the last call, as ``perf/<part>_s``; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            for (_, before), (part, event) in zip(self._events, self._events[1:], strict=False):
                if part is not None:
                    self._seconds[part] += before.elapsed_time(event) / 1e3
            self._events.clear()
        steps = max(self._steps, 1)
        means = {f"perf/{part}_s": seconds / steps for part, seconds in self._seconds.items()}
        self._seconds, self._steps = dict.fromkeys(PARTS, 0.0), 0
        return means

    def _put(self, part: str | None) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((part, event))
