"""Where the time of some steps goes: a trace to look at and a table of the slowest operators."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

from sensorlab.engine.callbacks.base import Callback

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

logger = logging.getLogger(__name__)

_ROWS = 40  # of the table


class Profiler(Callback):
    """Profiles the steps ``first`` to ``last`` (counted from 1, both included) on the main worker, into
    ``run_dir/profile/``.

    ``steps-00000005-00000008.trace.json.gz`` opens in https://ui.perfetto.dev or ``chrome://tracing``;
    ``steps-00000005-00000008.txt`` is the table. What runs between the steps (other callbacks, an evaluation, a
    checkpoint) is in them too. A run that is resumed inside the window profiles the rest of it; one that ends inside of
    it writes what it has. A profiled step of a small network (some 500 operators) costs about 0.1 s, nearly all of it
    when the files are written, which have about 25 kB per such step: profile tens of steps, not hundreds.
    """

    priority = 95  # the last to hear of a step's end: the work of the other callbacks for the step before is over

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._profile: profile | None = None
        self._begin = 0  # first profiled step
        self._step = 0  # last finished step

    def on_fit_start(self, training: Training) -> None:
        self._step = training.cursor.step
        self._start_if_due(training)

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._step = record.step
        if self._profile is None:
            self._start_if_due(training)
        elif record.step >= self._last:
            self._finish(training)
        else:
            self._profile.step()

    def on_fit_end(self, training: Training) -> None:
        self._finish(training)

    def on_error(self, training: Training, error: BaseException) -> None:
        self._finish(training)

    def _start_if_due(self, training: Training) -> None:
        if training.workers.is_main and self._first <= self._step + 1 <= self._last:
            activities = [ProfilerActivity.CPU]
            if training.workers.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._begin = self._step + 1
            self._profile = profile(activities=activities)
            self._profile.start()

    def _finish(self, training: Training) -> None:
        if self._profile is None:
            return
        profiled, self._profile = self._profile, None
        profiled.stop()
        if self._step < self._begin:  # not one step was finished
            return
        folder = training.run_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self._begin:08d}-{self._step:08d}"
        profiled.export_chrome_trace(str(folder / f"{name}.trace.json.gz"))
        order = "self_cuda_time_total" if training.workers.device.type == "cuda" else "self_cpu_time_total"
        table = profiled.key_averages().table(sort_by=order, row_limit=_ROWS)
        (folder / f"{name}.txt").write_text(table, encoding="utf-8")
        logger.info("profile of the steps %d to %d: %s", self._begin, self._step, folder)
