"""What a training leaves behind in a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sensorlab.cluster.memory import _malloc_trim

# Each "training" is a thread, as in a trial; its many small arrays come from a heap that stays with the process.
PROGRAM = """
import sys, threading
import numpy as np
from sensorlab.cluster.memory import give_back

def private():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) // 1024

def train():
    arrays = [np.ones(12_000) for _ in range(2_000)]  # 190 MB in pieces of 96 kB, too small for mappings of their own
    pins.append(arrays[-1].copy())  # something small outlives it
    del arrays

pins, before = [], private()
for _ in range(4):
    if sys.argv[1] == "yes":
        give_back()
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
if sys.argv[1] == "yes":
    give_back()
print(private() - before)
"""


def _grown(gives_back: bool) -> int:
    """Megabytes by which a process has grown after four trainings."""
    command = [sys.executable, "-c", PROGRAM, "yes" if gives_back else "no"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.skipif(_malloc_trim() is None, reason="only glibc can be told to give memory back")
def test_trainings_one_after_the_other_do_not_add_up():
    assert _grown(gives_back=False) > 150
    assert _grown(gives_back=True) < 50
