"""What a source must offer so that ``sensorlab data prepare`` can turn it into shards.

A source lists its samples cheaply and reads one of them at a time. It knows nothing about shards, workers or manifests;
preparing knows nothing about the source's files. A source travels to worker processes by pickling, so what it holds
should be arrays (numpy, Arrow), which Ray shares between processes without copying.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sensorlab.data.sample import Sample


class SampleSource(Protocol):
    """A dataset as published: a nuScenes dataroot, a folder of images, tracking sequences."""

    @property
    def origin(self) -> str:
        """Where the source is, for people; not part of its identity."""

    def description(self) -> dict[str, Any]:
        """Identity of the source and of the way it is read, as JSON: kind, version, fingerprint, options.

        Two sources with equal descriptions give the same samples. Cheap: nothing is loaded.
        """

    def splits(self) -> Mapping[str, Sequence[int]]:
        """Sample numbers of each split, sorted by (scene, timestamp). A scene lies in one split only.

        Raises:
            UserError: the source's index is missing, damaged or inconsistent, or does not say which split is which.
        """

    def read(self, number: int) -> Sample:
        """Read one sample, with everything that it holds.

        Raises:
            UserError: a file of the sample is missing or damaged; the message names record and path.
        """
