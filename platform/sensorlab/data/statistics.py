"""What a dataset's manifest says about its content: class statistics and the rig, gathered sample by sample.

Statistics of shards merge, so shards can be written by different workers and reused after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.dataset import CameraInfo, ClassStatistics, Sensors
from sensorlab.data.sample import Sample

_VISIBLE = 2  # visibility levels from here on are more than 40 % visible


class ContentStatistics(StrictModel):
    """Sums over some samples. Lists instead of mappings keep the order of sensors and survive JSON."""

    num_samples: int = 0
    scenes: tuple[str, ...] = ()  # in order of appearance
    boxes: dict[str, tuple[int, int, float, float, float]] = Field(
        default_factory=dict
    )  # category: count, visible, summed l, w, h
    cameras: dict[str, tuple[tuple[int, int], ...]] = Field(default_factory=dict)  # channel: sizes
    radars: dict[str, int] = Field(default_factory=dict)  # channel: sensor_id
    lidars: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample) -> ContentStatistics:
        """Statistics of one sample."""
        boxes: dict[str, tuple[int, int, float, float, float]] = {}
        for category, visibility, size in zip(
            sample.boxes.category, sample.boxes.visibility, sample.boxes.size, strict=True
        ):
            length, width, height = (float(value) for value in size)
            one = (1, int(visibility >= _VISIBLE), length, width, height)
            boxes[category] = _add(boxes.get(category), one)
        return cls(
            num_samples=1,
            scenes=(sample.scene,),
            boxes=boxes,
            cameras={camera.name: ((camera.width, camera.height),) for camera in sample.cameras},
            radars={sweep.name: sweep.sensor_id for sweep in sample.radars},
            lidars={sweep.name: sweep.sensor_id for sweep in sample.lidars},
        )

    @classmethod
    def merge(cls, parts: Iterable[ContentStatistics]) -> ContentStatistics:
        """Sum of the parts; deterministic in their order."""
        count = 0
        scenes: dict[str, None] = {}
        boxes: dict[str, tuple[int, int, float, float, float]] = {}
        cameras: dict[str, set[tuple[int, int]]] = {}
        radars: dict[str, int] = {}
        lidars: dict[str, int] = {}
        for part in parts:
            count += part.num_samples
            scenes.update(dict.fromkeys(part.scenes))
            for category, sums in part.boxes.items():
                boxes[category] = _add(boxes.get(category), sums)
            for name, sizes in part.cameras.items():
                cameras.setdefault(name, set()).update(sizes)
            radars.update(part.radars)
            lidars.update(part.lidars)
        return cls(
            num_samples=count,
            scenes=tuple(scenes),
            boxes=boxes,
            cameras={name: tuple(sorted(sizes)) for name, sizes in sorted(cameras.items())},
            radars=radars,
            lidars=lidars,
        )

    @property
    def num_boxes(self) -> int:
        return sum(sums[0] for sums in self.boxes.values())

    def classes(self) -> dict[str, ClassStatistics]:
        """Per category, in name order."""
        return {
            category: ClassStatistics(
                count=count,
                visible=visible,
                mean_size=(round(sums[0] / count, 4), round(sums[1] / count, 4), round(sums[2] / count, 4)),
            )
            for category, (count, visible, *sums) in sorted(self.boxes.items())
        }

    def sensors(self) -> Sensors:
        """The rig, in the order of the sensors' numbers."""
        return Sensors(
            cameras=tuple(CameraInfo(name=name, sizes=sizes) for name, sizes in sorted(self.cameras.items())),
            radars=tuple(sorted(self.radars, key=self.radars.__getitem__)),
            lidars=tuple(sorted(self.lidars, key=self.lidars.__getitem__)),
        )


def _add(
    left: tuple[int, int, float, float, float] | None, right: tuple[int, int, float, float, float]
) -> tuple[int, int, float, float, float]:
    if left is None:
        return right
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2], left[3] + right[3], left[4] + right[4])
