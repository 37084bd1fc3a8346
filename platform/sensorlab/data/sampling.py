"""Which samples an epoch of training visits: ``data.sampling``, and the order policy that it stands for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sensorlab.config import StrictModel
from sensorlab.data.dataset import Split
from sensorlab.data.order import OrderPolicy, ShuffledOrder
from sensorlab.data.sampling_policies import ClassBalancedOrder, GroupedOrder, ImageWeightsOrder, RepeatFactorOrder
from sensorlab.data.sampling_tables import ClassTable, SampleGroups, aspect_groups, class_table
from sensorlab.errors import UserError


class _Sampling(StrictModel):
    aspect_groups: bool = False  # every global batch is either of images wider than high, or of the others


class ShuffledSampling(_Sampling):
    """Every sample once per epoch, in a new order."""

    name: Literal["shuffled"] = "shuffled"


class ClassBalancedSampling(_Sampling):
    """CBGS: each class gets the same number of draws; the epoch is as long as all classes' samples together."""

    name: Literal["class_balanced"] = "class_balanced"


class RepeatFactorSampling(_Sampling):
    """LVIS: samples with a class that fewer than ``threshold`` of the samples hold come more often."""

    name: Literal["repeat_factor"] = "repeat_factor"
    threshold: float = Field(default=1e-3, gt=0.0, le=1.0)  # share of the samples below which a class is rare


class ImageWeightsSampling(_Sampling):
    """YOLOv5: draws with replacement, by inverse class frequency times (1 - score of the class)^2."""

    name: Literal["image_weights"] = "image_weights"


SamplingConfig = Annotated[
    ShuffledSampling | ClassBalancedSampling | RepeatFactorSampling | ImageWeightsSampling, Field(discriminator="name")
]


def order_policy(
    sampling: SamplingConfig, split: Split, task: Any, window_row_groups: int, global_batch: int, pad: bool
) -> OrderPolicy:
    """The policy of ``sampling`` over ``split``; reads the tables that it needs, once per process.

    Args:
        task: counts the objects of a sample (:class:`sensorlab.data.sampling_tables.ClassCounter`).
        pad: the last global batch of an epoch is filled up instead of left out.

    Raises:
        UserError: the split has no objects, or too few samples of an aspect ratio, for this policy.
    """
    policy = _ungrouped(sampling, split, task, window_row_groups)
    if not sampling.aspect_groups:
        return policy
    groups = aspect_groups(split)
    _check_group_sizes(groups, split, global_batch, pad)
    return GroupedOrder(policy, groups, global_batch, pad)


def _ungrouped(sampling: SamplingConfig, split: Split, task: Any, window_row_groups: int) -> OrderPolicy:
    if isinstance(sampling, ShuffledSampling):
        return ShuffledOrder(window_row_groups)
    table = _objects(sampling.name, split, task)
    if isinstance(sampling, ClassBalancedSampling):
        return ClassBalancedOrder(table, window_row_groups)
    if isinstance(sampling, RepeatFactorSampling):
        return RepeatFactorOrder(table, sampling.threshold, window_row_groups)
    return ImageWeightsOrder(table, window_row_groups)


def _objects(policy: str, split: Split, task: Any) -> ClassTable:
    table = class_table(split, task)
    if not table.classes:
        raise UserError(
            f"data.sampling.name={policy} draws samples by the classes of their objects, and the task finds none in "
            f"the {split.num_samples} samples of split {split.name!r}: use a split with boxes, or "
            "data.sampling.name=shuffled"
        )
    return table


def _check_group_sizes(groups: SampleGroups, split: Split, global_batch: int, pad: bool) -> None:
    """A group that does not fill one batch would be left out of every epoch."""
    smallest = int(groups.sizes[groups.sizes > 0].min())
    if smallest < global_batch and not pad:
        raise UserError(
            f"data.sampling.aspect_groups: split {split.name!r} has {smallest} samples of one aspect ratio, fewer than "
            f"one global batch of {global_batch}, so that they would hardly be seen: set data.last_batch=pad"
        )
