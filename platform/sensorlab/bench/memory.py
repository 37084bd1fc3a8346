"""Peak memory of a piece of code, above what the process held before it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

import psutil
import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Context manager; afterwards ``peak_bytes`` is the highest use inside minus the use at entry.

    CPU: resident memory. Linux can reset its high-water mark (writing 5 to ``/proc/self/clear_refs``), so what happened
    earlier in the process does not hide the peak; elsewhere the mark since the start of the process is taken, which is
    right only for code that exceeds everything before it. CUDA: bytes allocated by torch. ``measure`` names which.
    """

    peak_bytes: int
    measure: str

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self.measure, self._before = "cuda allocated", torch.cuda.memory_allocated(self._device)
            return self
        try:
            _CLEAR_REFS.write_text("5")
            self.measure = "resident, mark reset"
        except OSError:
            self.measure = "resident, mark since process start"
        self._before = psutil.Process().memory_info().rss
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            self.peak_bytes = _high_water_mark() - self._before


def _high_water_mark() -> int:
    """Highest resident memory of this process in bytes since the last reset of the mark."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
