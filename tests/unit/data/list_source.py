"""A source that holds its samples in memory, for tests of what comes after the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sensorlab.data.sample import Sample


@dataclass
class ListSource:
    """Samples by split; ``reads`` counts, ``fail_at`` raises in the place of that read."""

    samples: dict[str, Sequence[Sample]]
    name: str = "list"
    fail_at: tuple[int, BaseException] | None = None
    reads: list[int] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return "memory"

    def description(self) -> dict[str, Any]:
        return {"kind": self.name, "version": "1"}

    def splits(self) -> dict[str, list[int]]:
        numbers, start = {}, 0
        for split, samples in self.samples.items():
            numbers[split] = list(range(start, start + len(samples)))
            start += len(samples)
        return numbers

    def read(self, number: int) -> Sample:
        if self.fail_at is not None and len(self.reads) == self.fail_at[0]:
            raise self.fail_at[1]
        self.reads.append(number)
        return [sample for samples in self.samples.values() for sample in samples][number]
