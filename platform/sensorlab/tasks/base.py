"""The task contract: what one batch means.

A task turns samples into arrays, builds the model, and says what is minimised, measured and drawn. It knows nothing
of workers, checkpoints or Ray. Adding a task means adding one module ``sensorlab/tasks/<name>`` that defines ``Task``
(a subclass of :class:`BaseTask`) with a ``Config``, its configuration files and its tests; nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sensorlab.config import StrictModel
from sensorlab.data.random_streams import SampleRandom
from sensorlab.data.sample import Sample
from sensorlab.errors import UserError
from sensorlab.metrics.base import Metric

if TYPE_CHECKING:
    from sensorlab.data.dataset import Manifest

Arrays = dict[str, np.ndarray]
Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]


class BaseTask(ABC):
    """Contract of every task. Instances are immutable, picklable and cheap; models are made by ``build_model``."""

    Config: ClassVar[type[StrictModel]]

    def __init__(self, config: Any) -> None:
        self.config = config

    def check_dataset(self, manifest: Manifest) -> None:  # noqa: B027  (optional)
        """Compare what the configuration asks for with what a prepared dataset has, before anything is read from it.

        Raises:
            UserError: names the key, what it asks for, what the dataset has and how to prepare one that fits.
        """

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of the sample schema that ``transform`` needs; the stream reads no others."""

    @property
    def num_partners(self) -> int:
        """Other samples of the split that each training sample is composed with (mosaic: 3). The plan of the epoch
        chooses them, so that they do not depend on workers, reading or resuming."""
        return 0

    @abstractmethod
    def transform(self, sample: Sample, random: SampleRandom, training: bool) -> Arrays:
        """Decode, augment and label one sample. Pure: equal arguments give equal bytes. No batch dimension."""

    def compose(self, samples: Sequence[Sample], random: SampleRandom) -> Arrays:
        """The training transform of a task with partners: one sample made of the first of ``samples`` and the others.

        ``random`` belongs to the first. Pure, as ``transform``.
        """
        raise NotImplementedError

    def collate(self, items: Sequence[Arrays]) -> Arrays:
        """Stack transformed samples along a new first dimension. Override for ragged arrays (values + offsets).

        The stream adds ``index`` (B,) int64, the row numbers of the samples in their split, and ``is_filler`` (B,)
        bool: samples that only fill the last batch of an evaluation and do not count.
        """
        return {name: np.stack([item[name] for item in items]) for name in items[0]}

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model with its initial (or imported) weights. The caller has seeded torch."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Run the model on one batch; also used for evaluation (``model.training`` tells)."""

    @abstractmethod
    def losses(self, model: nn.Module, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(terms, extras): the objective is the sum of the scalar terms; extras are scalars that are only recorded.

        A loss is a mean over the samples of the batch, so that gradient averaging over workers and micro-batches
        keeps its meaning.
        """

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Counts that the losses of a batch are divided by (of positives, say), where they are no means over samples.

        In training the engine replaces each by its mean over the workers and hands it to ``losses`` as an entry of the
        batch, so that averaging the gradients gives those of the global batch, exactly. A batch without the entry, as
        in evaluation, stands for itself. Computed from inputs and targets alone, before the model runs.

        A mean of counts may be below 1: a loss that guards against division by zero must guard against 0 alone.

        Returns:
            Name of the entry to a float tensor; the same names and shapes for every batch.
        """
        return {}

    def split_samples(self, outputs: Outputs, batch: Batch) -> Iterator[tuple[Outputs, Batch]]:
        """The samples of a batch one by one, as batches of one. Override where arrays are ragged."""
        for i in range(len(batch["index"])):
            one_outputs = {name: value[i : i + 1] for name, value in outputs.items()}
            yield one_outputs, {name: value[i : i + 1] for name, value in batch.items()}

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Fresh accumulators by name. Reported names are ``<name>`` from ``compute`` of each."""

    def class_scores(self, metrics: Mapping[str, Metric]) -> dict[str, float]:
        """Score in [0, 1] of every class after an evaluation, for orders that show difficult classes more often.

        Args:
            metrics: the accumulators of :meth:`metrics`, merged over the workers.
        """
        return {}

    def tables(self, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Sequence[Any]]]:
        """What an evaluation found beyond the curves, for example scores per class or a confusion matrix in rows.

        Every worker calls it; the tables are recorded as files that the tracking pages show and compare, so that
        numbers per class need no metric name each.

        Args:
            metrics: the accumulators of :meth:`metrics`, merged over the workers.

        Returns:
            Table name to columns: column name to its values (text, integers, floats), all of one length.
        """
        return {}

    def sample_classes(self, sample: Sample) -> Mapping[str, int]:
        """Number of objects of each class in a sample (read with its boxes only), for class-balanced orders."""
        return Counter(sample.boxes.category)

    def image_size(self, batch: Batch) -> tuple[int, int]:
        """(height, width) in pixels of the images of a batch, for multi-scale training."""
        raise UserError(f"train.multi_scale: task {self.config.name} has no images that it could resize")

    def resize(self, batch: Batch, size: tuple[int, int]) -> Batch:
        """The batch with images of another (height, width), and all that is measured in their pixels with them."""
        raise UserError(f"train.multi_scale: task {self.config.name} has no images that it could resize")

    def input_panels(self, batch: Batch) -> list[tuple[str, np.ndarray]]:
        """Pictures of inputs and targets of a training batch: (title, (H, W, 3) uint8), one per sample at most."""
        return []

    @abstractmethod
    def decode(self, outputs: Outputs) -> list[Any]:
        """What the outputs say, one element per sample of the batch, in the task's own terms: objects, classes, poses.

        For prediction and export; training, losses and metrics work on the outputs themselves.
        """

    @abstractmethod
    def panels(self, outputs: Outputs, batch: Batch) -> list[tuple[str, np.ndarray]]:
        """Pictures of a batch: (title, (H, W, 3) uint8), one per sample at most."""


def task_names() -> list[str]:
    """Names of the tasks that exist: the modules of this package that define ``Task``."""
    package = importlib.import_module("sensorlab.tasks")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name not in {"base"})


def task_class(name: str) -> type[BaseTask]:
    """The ``Task`` class of ``sensorlab.tasks.<name>``.

    Raises:
        UserError: there is no such task; the message lists those that exist.
    """
    if name not in task_names():
        raise UserError(f"task {name!r} does not exist; tasks: {', '.join(task_names())}")
    return importlib.import_module(f"sensorlab.tasks.{name}").Task
