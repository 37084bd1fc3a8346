"""What a run really does: the engine's loop over samples that Ray Data streams."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sensorlab
from sensorlab.cluster.preflight import UNSHARED, Share
from sensorlab.cluster.worker import RunContext, RunSpec
from sensorlab.data.dataset import PreparedDataset, Split
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.stream import STREAMS_OF_A_RUN, SampleStream, StreamConfig, StreamSpec
from sensorlab.data.subset import Unaugmented, first_rows, spread_fraction
from sensorlab.engine.accumulate import Accumulation
from sensorlab.engine.budget import Budget, early_stop_of
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.checkpoint import CheckpointStore, load_plain
from sensorlab.engine.fork import donor_cursor
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.environment import code_revision
from sensorlab.tasks.base import BaseTask, task_class

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class EngineProgram:
    """Train the experiment's task with :func:`sensorlab.engine.fit.fit`."""

    def datasets(self, spec: RunSpec) -> dict[str, Callable[[], Any]]:
        from sensorlab.data.ray_stream import makes_own_datasets

        config = experiment_from(spec.experiment)
        streams = stream_specs(config, spec.dataset, spec.share)
        if next_cursor(spec, config) is None:
            return {}  # trained to its end already; only the result is missing
        return {
            name: functools.partial(_dataset, name, stream, spec)
            for name, stream in streams.items()
            if not makes_own_datasets(stream, config.resources.num_workers)
        }

    def train(self, context: RunContext) -> Mapping[str, Any]:
        from sensorlab.engine.callbacks.diagnostics import build_callbacks
        from sensorlab.engine.callbacks.json_log import JsonLog
        from sensorlab.engine.callbacks.panel_files import PanelFiles
        from sensorlab.engine.callbacks.table_files import TableFiles
        from sensorlab.engine.callbacks.text_log import TextLog
        from sensorlab.engine.fit import fit

        config, spec = context.config, context.spec
        task = build_task(config)
        streams = open_streams(context, task)
        files = [JsonLog(), TextLog(to_terminal=False)] + ([] if spec.tracking else [PanelFiles(), TableFiles()])
        asked_for = build_callbacks(config.diagnostics, config.train.early_stop)
        account = TimeAccount()
        try:
            result = fit(
                config,
                task,
                streams[TRAIN],
                streams.get(VAL),
                run_dir=context.run_dir,
                workers=context.workers,
                callbacks=[*context.callbacks, *files, *asked_for, account],
                resume=spec.resume,
                provenance={
                    "dataset": PreparedDataset.open(spec.dataset).digest,
                    "order": stream_specs(config, spec.dataset)[TRAIN].plan.fingerprint,
                    "code": revision_in_use(),
                },
            )
        finally:
            for stream in streams.values():
                stream.close()
        return {
            "metrics": result.metrics,
            "steps": result.steps,
            "epochs": result.epochs,
            "best_checkpoint": str(result.best_checkpoint) if result.best_checkpoint else None,
            "last_checkpoint": str(result.last_checkpoint) if result.last_checkpoint else None,
            "config_digest": result.config_digest,
            "time": account.report(),
        }


class TimeAccount(Callback):
    """When this attempt took its first step, and where the run's seconds went (see ``WallClock``)."""

    def __init__(self) -> None:
        self._first_step: float | None = None
        self._totals: dict[str, float] = {}

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        if self._first_step is None:
            self._first_step = time.time()

    def on_fit_end(self, training: Training) -> None:
        self._totals = dict(training.clock.totals)

    def report(self) -> dict[str, Any]:
        return {"first_step": self._first_step, "seconds": self._totals}


@functools.cache
def revision_in_use() -> str:
    """Revision of the repository that this package belongs to, once per process."""
    code = code_revision(Path(sensorlab.__file__).resolve().parents[2])
    return f"{code.commit}{'+changes' if code.is_dirty else ''}"


def build_task(config: ExperimentConfig) -> BaseTask:
    return task_class(config.task.name)(config.task)  # type: ignore[attr-defined]


def stream_specs(config: ExperimentConfig, dataset: str, share: Share = UNSHARED) -> dict[str, StreamSpec]:
    """What is streamed, by name; equal in the driver and in every worker.

    ``share``: of the cluster; it says nothing about the content.

    Raises:
        UserError: no prepared dataset there, it lacks what the task asks for, a split is missing or empty.
    """
    data = config.data
    prepared, task = _prepared(config, dataset)
    train_task = task if data.augment else Unaugmented(task)
    train_split = _part(prepared, data.train_split, data.max_samples, data.train_fraction)
    return {
        TRAIN: StreamSpec(
            *(train_split, train_task, data.global_batch, config.seed, True),
            _stream_config(config, share),
            sampling=data.sampling,
            max_batches=data.max_batches,
        ),
        VAL: validation_spec(config, dataset, share),
    }


def validation_spec(config: ExperimentConfig, dataset: str, share: Share = UNSHARED) -> StreamSpec:
    """The validation alone, which a dataset without a training split has too. Raises ``UserError`` as above."""
    data = config.data
    prepared, task = _prepared(config, dataset)
    split = _part(prepared, data.val_split, data.max_samples)
    return StreamSpec(
        split,
        task,
        data.val_batch or data.global_batch,
        config.seed,
        training=False,
        config=_stream_config(config, share),
    )


def least_object_store(config: ExperimentConfig, dataset: str) -> int:
    """Bytes of the object store without which the streams of a run spill to disk."""
    from sensorlab.data.ray_stream import least_object_store

    workers = config.resources.num_workers
    return sum(least_object_store(stream, workers) for stream in stream_specs(config, dataset).values())


def _prepared(config: ExperimentConfig, dataset: str) -> tuple[PreparedDataset, BaseTask]:
    prepared, task = PreparedDataset.open(dataset), build_task(config)
    task.check_dataset(prepared.manifest)
    return prepared, task


def _stream_config(config: ExperimentConfig, share: Share) -> StreamConfig:
    data = config.data
    tasks = max(2, math.ceil(config.resources.data_cpus))
    return StreamConfig(
        transform_in=data.transform_in,
        threads=data.threads,
        prefetch_batches=data.prefetch,
        window_row_groups=data.shuffle_window,
        last_batch=data.last_batch,
        max_corrupt_fraction=data.max_corrupt_fraction,
        tasks=tasks,
        # Together what the preflight keeps free for them. The tasks of both streams, because those of the training
        # wait during an evaluation, and keep their CPUs: it would wait for them, and they for it.
        task_cpus=config.resources.data_cpus / (tasks * STREAMS_OF_A_RUN),
        object_store=share.object_store,
    )


def _part(dataset: PreparedDataset, split: str, max_samples: int | None, fraction: float = 1.0) -> Split:
    part = dataset.split(split)
    if max_samples is not None:
        part = first_rows(part, max_samples)
    return part if fraction == 1.0 else spread_fraction(part, fraction)


def budget_of(config: ExperimentConfig, batches_per_epoch: int) -> Budget:
    """Where the training ends; the engine's own rule."""
    accumulation = Accumulation(
        config.train.accumulate,
        global_batch=config.data.global_batch,
        batches_per_epoch=batches_per_epoch,
        warmup=config.warmup,
    )
    return Budget.of(config.train.duration, config.train.extend, accumulation, config.train.until)


def next_cursor(spec: RunSpec, config: ExperimentConfig) -> tuple[int, int] | None:
    """(epoch, batch) where training goes on: after the latest valid checkpoint, of the run that is forked if this one
    has none; ``None`` when it is finished."""
    plan = stream_specs(config, spec.dataset)[TRAIN].plan
    latest = CheckpointStore(Path(spec.run_dir) / "checkpoints").latest()
    is_over = False
    if latest is not None:
        state = load_plain(latest.path)
        saved, is_over = state["cursor"], early_stop_of(state, config.train.extend) is not None
    elif config.train.fork is not None:
        saved = donor_cursor(config, config.train.fork)
    else:
        return (0, 0)
    if is_over or saved["step"] >= budget_of(config, plan.batches_per_epoch).steps:
        return None
    return plan.normal_cursor((saved["epoch"], saved["batch"]))


def place_of(workers: WorkerGroup) -> dict[str, Any]:
    """What a stream must know of its worker: copies to a GPU do not wait only if they start in pinned memory."""
    return {
        "rank": workers.rank,
        "world_size": workers.world_size,
        "pin_memory": workers.device.type == "cuda",
    }


def open_streams(context: RunContext, task: BaseTask) -> dict[str, SampleStream]:
    """This worker's ends of the streams."""
    import ray.train

    from sensorlab.data.ray_stream import RayStream, makes_own_datasets

    config, spec, workers = context.config, context.spec, context.workers
    specs = stream_specs(config, spec.dataset, spec.share)
    place = place_of(workers)
    cursor = next_cursor(spec, config)
    if cursor is None:
        return {name: LocalStream(stream, **place) for name, stream in specs.items()}
    end_epoch = budget_of(config, specs[TRAIN].plan.batches_per_epoch).epochs
    return {
        name: RayStream(
            stream,
            None if makes_own_datasets(stream, workers.world_size) else ray.train.get_dataset_shard(name),
            **place,
            start=cursor,
            end_epoch=end_epoch,
        )
        for name, stream in specs.items()
    }


def _dataset(name: str, stream: StreamSpec, spec: RunSpec) -> Any:
    """Called when the workers start, in whichever process starts them: the cursor is that of this attempt."""
    from sensorlab.data.ray_stream import ray_dataset

    config = experiment_from(spec.experiment)
    world_size = config.resources.num_workers
    cursor = next_cursor(spec, config)
    end_epoch = budget_of(config, stream.plan.batches_per_epoch).epochs
    return ray_dataset(stream, world_size, start=cursor or (end_epoch - 1, 0), end_epoch=end_epoch)
