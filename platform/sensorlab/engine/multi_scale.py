"""Multi-scale training: images of another size every few batches, the same on all workers of a step.

A size is a pure function of (seed, epoch, batch), so there is nothing to save: a resumed run draws what the
uninterrupted one would have. What resizing means is the task's business: :meth:`~sensorlab.tasks.base.BaseTask.resize`.

Source: YOLOv5's ``train.py --multi-scale``. There every rank draws for itself, from a generator without a seed.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from sensorlab.config import StrictModel
from sensorlab.data.random_streams import keyed_generator
from sensorlab.tasks.base import BaseTask, Batch


class MultiScaleConfig(StrictModel):
    """Longer sides to draw from, relative to that of the images as they come; the defaults are YOLOv5's.

    Every multiple of ``stride`` from ``low`` to ``high`` times the longer side is equally likely (one that falls
    between two multiples is rounded down); or, with ``factors``, each of these.
    """

    low: float = Field(default=0.5, gt=0)
    high: float = Field(default=1.5, gt=0)
    factors: tuple[float, ...] = ()  # one of these instead of low to high
    stride: int = Field(default=32, ge=1)  # pixels: sizes are multiples, as the network needs
    every: int = Field(default=1, ge=1)  # global batches that share a draw

    @model_validator(mode="after")
    def _a_range(self) -> MultiScaleConfig:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        if min(self.factors, default=1.0) <= 0:
            raise ValueError("factors must be positive")
        return self


def draw_size(config: MultiScaleConfig, seed: int, epoch: int, batch: int, size: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) that images of ``size`` get in a global batch; pure, so equal on every worker."""
    generator = keyed_generator(seed, "multi_scale", epoch, batch // config.every)
    # By ``random``, whose stream numpy keeps the same across versions, as it does not those of other methods.
    return scaled_size(size, drawn_side(config, max(size), float(generator.random())), config.stride)


def drawn_side(config: MultiScaleConfig, longer_side: int, share: float) -> int:
    """The longer side, pixels, that a uniform ``share`` in [0, 1) stands for, before it is rounded to the stride.

    YOLOv5: ``randrange(0.5 * side, 1.5 * side + stride)``; the end makes the largest multiple as likely as others.
    """
    if config.factors:
        return round(longer_side * config.factors[int(share * len(config.factors))])
    first, end = int(longer_side * config.low), int(longer_side * config.high) + config.stride
    return first + int(share * (end - first))


def scaled_size(size: tuple[int, int], side: int, stride: int) -> tuple[int, int]:
    """``size`` (height, width) with the longer side at ``side`` rounded down to ``stride``, the other up to it.

    A ``size`` whose longer side is that already stays as it is. In whole numbers: the original divides floats, which
    makes some sides one stride longer (400 at 224 gives 256), but none for longer sides of 320, 512, 640 and 1280.
    """
    longer, target = max(size), max(side // stride, 1) * stride
    if target == longer:
        return size
    height, width = (-(-extent * target // (longer * stride)) * stride for extent in size)
    return height, width


def largest_size(config: MultiScaleConfig, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size (height, width) that images of ``size`` can get, for a dry run."""
    if config.factors:
        return scaled_size(size, round(max(size) * max(config.factors)), config.stride)
    return scaled_size(size, int(max(size) * config.high) + config.stride - 1, config.stride)


def rescale(task: BaseTask, batch: Batch, config: MultiScaleConfig, seed: int, epoch: int, batch_number: int) -> Batch:
    """``batch`` with its images at the size of its turn.

    Raises:
        UserError: the task has no images to resize, or its network cannot take the size.
    """
    size = task.image_size(batch)
    drawn = draw_size(config, seed, epoch, batch_number, size)
    return batch if drawn == size else task.resize(batch, drawn)
