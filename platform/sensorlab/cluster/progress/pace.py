"""How fast a run goes, and how long it will take."""

from __future__ import annotations

HALF_LIFE_S = 30.0  # of a step's weight in the means: old enough to be calm, young enough to follow a change


class Pace:
    """Means over the latest training steps, weighted down by half for every ``HALF_LIFE_S`` of training.

    The first step of an attempt does not count: it pays for compilation, caches and the start of the stream.
    """

    def __init__(self) -> None:
        self._steps = 0.0
        self._samples = 0.0
        self._data_wait_s = 0.0
        self._step_s = 0.0
        self._wall_s = 0.0  # from the end of one step to the end of the next: with the callbacks
        self._sums = [0.0] * 5  # of the steps before the last ``settle``, weighted
        self._warm = False

    def add(self, samples: int, data_wait_s: float, step_s: float, wall_s: float) -> None:
        """Count one optimiser step; on the step path."""
        if not self._warm:
            self._warm = True
            return
        self._steps += 1.0
        self._samples += samples
        self._data_wait_s += data_wait_s
        self._step_s += step_s
        self._wall_s += wall_s

    def settle(self) -> None:
        """Weigh the past down by the time that has passed since the last call."""
        new = (self._steps, self._samples, self._data_wait_s, self._step_s, self._wall_s)
        weight = 0.5 ** (self._wall_s / HALF_LIFE_S)
        self._sums = [weight * old + fresh for old, fresh in zip(self._sums, new, strict=True)]
        self._steps = self._samples = self._data_wait_s = self._step_s = self._wall_s = 0.0

    # The means, as of the last ``settle``; ``None`` before there is a step to go by.

    @property
    def data_wait_s(self) -> float | None:
        return self._mean(2)

    @property
    def step_s(self) -> float | None:
        return self._mean(3)

    @property
    def wall_s(self) -> float | None:
        """Seconds from step to step while training."""
        return self._mean(4)

    @property
    def samples_per_s(self) -> float | None:
        busy = self._sums[2] + self._sums[3]
        return self._sums[1] / busy if busy > 0 else None

    def _mean(self, index: int) -> float | None:
        return self._sums[index] / self._sums[0] if self._sums[0] > 0 else None


class Interruption:
    """A phase that interrupts training every so many steps, and the time that it will take until the end.

    Args:
        since: step at which the phase was last passed before the first time that is counted here. A resumed run knows
            it from its checkpoint; without it, an evaluation two steps after the resume would seem to come every two.
    """

    def __init__(self, since: int) -> None:
        self._since = self._until = since
        self._seconds = 0.0

    def add(self, step: int, seconds: float) -> None:
        """It took ``seconds`` at ``step``."""
        self._until = step
        self._seconds += seconds

    def expecting(self, step: int, seconds: float) -> Interruption:
        """As this one will be when the one that goes on at ``step`` has taken ``seconds``."""
        other = Interruption(self._since)
        other.add(step, self._seconds + seconds)
        return other

    def left_s(self, total_steps: int) -> float:
        """Seconds from the last one to ``total_steps``: that of the steps since then is still to come."""
        steps = self._until - self._since
        return self._seconds / steps * (total_steps - self._until) if steps > 0 else 0.0
