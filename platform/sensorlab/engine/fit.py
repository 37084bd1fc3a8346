"""The epoch loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensorlab.data.stream import SampleStream
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.evaluate import evaluate
from sensorlab.engine.meters import system_metrics
from sensorlab.engine.step import train_step
from sensorlab.engine.training import Training
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig
from sensorlab.tasks.base import BaseTask, Batch


@dataclass(frozen=True)
class FitResult:
    """What a finished training leaves."""

    metrics: dict[str, float]  # latest value of every reported name
    steps: int
    epochs: int
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    config_digest: str


def fit(
    config: ExperimentConfig,
    task: BaseTask,
    train_stream: SampleStream,
    val_stream: SampleStream | None,
    *,
    run_dir: Path,
    workers: WorkerGroup | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    provenance: Mapping[str, str] | None = None,
) -> FitResult:
    """Train to the end of the budget, from the latest valid checkpoint of ``run_dir`` if there is one.

    The same function runs under plain torch, in a Ray Train worker and in a Tune trial. Every worker of the run calls
    it with its own streams.

    Args:
        run_dir: absolute directory of the run, shared by all workers; checkpoints go to ``run_dir/checkpoints``.
        resume: ``False`` refuses to start where checkpoints exist.
        provenance: what the run was made of, saved in each checkpoint; ``provenance["dataset"]`` must not change.

    Raises:
        UserError: bad budget, unknown objective, or a checkpoint that this configuration may not continue.
        FloatingPointError: training diverged.
    """
    training = Training(
        config,
        task,
        train_stream,
        run_dir=run_dir,
        workers=workers or WorkerGroup.current(),
        callbacks=callbacks,
        provenance=provenance,
    )
    try:
        with training.clock.span("restart"):
            if val_stream is not None:
                _check_objective(training)
            _start(training, resume)
        while not training.finished:
            _train_epoch(training, train_stream, val_stream)
            _finish_epoch(training, train_stream, val_stream)
    except BaseException as error:
        for callback in training.callbacks:
            callback.on_error(training, error)
        raise
    if training.workers.is_main:
        training.store.retain()  # the attempt that wrote the last checkpoint may have died before it could
    for callback in training.callbacks:
        callback.on_fit_end(training)
    best, last = training.store.best(), training.store.latest()
    return FitResult(
        metrics=training.metrics,
        steps=training.cursor.step,
        epochs=training.cursor.epoch,
        best_checkpoint=best.path if best else None,
        last_checkpoint=last.path if last else None,
        config_digest=training.config_digest,
    )


def _check_objective(training: Training) -> None:
    """A misspelt objective must not cost an epoch."""
    names = [f"val/{key}" for metric in training.task.metrics().values() for key in metric.compute()]
    if training.config.eval.metric not in {*names, "val/loss"}:
        raise UserError(
            f"eval.metric={training.config.eval.metric} is not reported; the task reports {', '.join(names)}, val/loss"
        )


def _start(training: Training, resume: bool) -> None:
    try:
        training.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the run directory {training.run_dir}: {error.strerror}") from error
    # The main worker chooses, so that all restore the same checkpoint even while one is being refused.
    found = None
    if training.workers.is_main:
        training.store.recover()
        found = training.store.latest()
    latest = training.workers.gather(found)[0]
    if latest is not None:
        if not resume:
            raise UserError(f"{training.run_dir} holds a run already; resume it or choose another directory")
        training.restore(latest)
    elif training.config.train.init is not None:
        training.load_initial_weights(training.config.train.init)
    for callback in training.callbacks:
        callback.on_fit_start(training)


def _train_epoch(training: Training, train_stream: SampleStream, val_stream: SampleStream | None) -> None:
    """The rest of the current epoch, from the cursor on."""
    config, cursor = training.config, training.cursor
    training.model.train()
    batches: Iterator[Batch] | None = None
    while cursor.batch < training.batches_per_epoch and cursor.step < training.total_steps:
        if batches is None:
            batches = train_stream.batches(cursor.epoch, cursor.batch)
        passes = training.accumulation.passes_from(cursor.epoch, cursor.batch)
        if passes == 0:  # the batches that are left make no step: read past them, so that the stream stays in order
            for _ in batches:
                pass
            cursor.batch = training.batches_per_epoch
            break
        record = train_step(training, batches, passes)
        training.meter.update(record)
        training.clock.totals["step"] += record.step_s
        training.clock.totals["data_wait"] += record.data_wait_s
        with training.clock.span("callback"):
            for callback in training.callbacks:
                callback.on_step_end(training, record)
        if cursor.step % config.train.log_every_steps == 0:
            _publish_interval(training)
        improved = _due(cursor.step, config.eval.every_steps) and _evaluate(training, val_stream)
        if improved or _due(cursor.step, config.checkpoint.every_steps):
            _checkpoint(training)


def _finish_epoch(training: Training, train_stream: SampleStream, val_stream: SampleStream | None) -> None:
    """Evaluation, then the move to the next epoch, then the checkpoint that starts there."""
    config, cursor = training.config, training.cursor
    epoch = cursor.epoch + 1
    last = cursor.step >= training.total_steps
    _publish_interval(training)
    improved = (last or _due(epoch, config.eval.every_epochs)) and _evaluate(training, val_stream)
    _list_corrupt_samples(training, [stream for stream in (train_stream, val_stream) if stream])
    publish(training, training.clock.metrics())
    cursor.epoch, cursor.batch = epoch, 0
    if last or improved or _due(epoch, config.checkpoint.every_epochs):
        _checkpoint(training)
    for callback in training.callbacks:
        callback.on_epoch_end(training, training.metrics)


def _list_corrupt_samples(training: Training, streams: Sequence[SampleStream]) -> None:
    """Count the samples that were skipped in all attempts, and list them in ``run_dir/corrupt_samples.txt``."""
    if training.config.data.max_corrupt_fraction == 0.0:
        return
    own = [sample.message for stream in streams for sample in stream.corrupt_samples]
    found = {message for part in training.workers.gather(own) for message in part}
    training.corrupt_samples = sorted(found.union(training.corrupt_samples))
    publish(training, {"perf/corrupt_samples": float(len(training.corrupt_samples))})
    if training.workers.is_main:
        listing = "".join(f"{message}\n" for message in training.corrupt_samples)
        (training.run_dir / "corrupt_samples.txt").write_text(listing, encoding="utf-8")


def publish(training: Training, metrics: Mapping[str, float]) -> None:
    """Hand reduced numbers to the callbacks."""
    if not metrics:
        return
    training.metrics.update(metrics)
    with training.clock.span("callback"):
        for callback in training.callbacks:
            callback.on_metrics(training, metrics, training.cursor.step)


def _publish_interval(training: Training) -> None:
    """Losses, rates and use of the machine since the last report, with the epoch as a fraction."""
    metrics = training.meter.reduce(training.workers)
    if metrics:
        epoch = training.cursor.epoch + training.cursor.batch / training.batches_per_epoch
        publish(training, {**metrics, "train/epoch": epoch, **system_metrics(training.workers.device)})


def _evaluate(training: Training, stream: SampleStream | None) -> bool:
    """Evaluate once per step; ``True`` if the model is the best so far, which a checkpoint must then hold."""
    if stream is None or training.evaluated_step == training.cursor.step:
        return False
    with training.clock.span("evaluation"):
        metrics, panels = evaluate(training, stream)
    training.evaluated_step = training.cursor.step
    publish(training, metrics)
    if panels and training.workers.is_main:
        with training.clock.span("callback"):
            for callback in training.callbacks:
                callback.on_panels(training, panels, training.cursor.step)
    return training.takes_as_best(metrics[training.config.eval.metric])


def _checkpoint(training: Training) -> None:
    with training.clock.span("checkpoint"):
        state = training.state_dict()
        if training.workers.is_main:
            path = training.store.save(state, step=training.cursor.step, metrics=_measured(training))
            for callback in training.callbacks:
                callback.on_checkpoint(training, path)
        training.workers.barrier()


def _measured(training: Training) -> dict[str, float]:
    """The finite numbers that describe the weights of now: those of an evaluation only if it was of these weights."""
    current = training.evaluated_step == training.cursor.step
    return {
        name: value
        for name, value in training.metrics.items()
        if math.isfinite(value) and (current or not name.startswith("val/"))
    }


def _due(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
