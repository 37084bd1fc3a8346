"""The epoch loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensorlab.data.stream import SampleStream
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.duration import Every, Progress
from sensorlab.engine.evaluate import check_objective, evaluate, evaluated_batches
from sensorlab.engine.fork import begin_as_fork
from sensorlab.engine.rehearsal import rehearse
from sensorlab.engine.step import train_step
from sensorlab.engine.training import Training
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig
from sensorlab.tasks.base import BaseTask, Batch

logger = logging.getLogger(__name__)


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
        _start(training, train_stream, val_stream, resume)
        training.clock.enter("other")
        if training.finished and val_stream is not None and training.evaluated.steps != training.cursor.step:
            _finish_epoch(training, train_stream, val_stream)  # train.until is where, or before, an attempt was killed
        while not training.finished:
            _train_epoch(training, train_stream, val_stream)
            _finish_epoch(training, train_stream, val_stream)
    except BaseException as error:
        tell_error(training, error)
        raise
    if training.workers.is_main:
        training.store.retain()  # the attempt that wrote the last checkpoint may have died before it could
    _tell_end(training)
    # The main worker looks for all: it alone knows that nothing is being removed.
    found = (training.store.best(), training.store.latest()) if training.workers.is_main else (None, None)
    best, last = training.workers.gather(found)[0]
    return FitResult(
        metrics=training.metrics,
        steps=training.cursor.step,
        epochs=training.cursor.epochs_begun,
        best_checkpoint=best.path if best else None,
        last_checkpoint=last.path if last else None,
        config_digest=training.config_digest,
    )


def _tell_end(training: Training) -> None:
    """Every callback hears of the end, also when one before it fails; the first failure is raised afterwards."""
    failures: list[Exception] = []
    for callback in training.callbacks:
        try:
            callback.on_fit_end(training)
        except Exception as error:
            logger.exception("%s.on_fit_end failed", type(callback).__name__)
            failures.append(error)
    if failures:
        raise failures[0]


def tell_error(training: Training, error: BaseException) -> None:
    """A callback that fails over an error must neither hide it nor keep it from the others."""
    for callback in training.callbacks:
        try:
            callback.on_error(training, error)
        except Exception:
            logger.exception("%s.on_error failed", type(callback).__name__)


def _start(training: Training, train_stream: SampleStream, val_stream: SampleStream | None, resume: bool) -> None:
    """Restore the latest checkpoint, or begin a new run."""
    if val_stream is not None:
        check_objective(training)
    elif training.config.train.early_stop is not None:
        raise UserError("train.early_stop judges evaluations, and this training has no validation split: leave it out")
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
    elif training.config.train.fork is not None:
        begin_as_fork(training, training.config.train.fork)
    elif training.config.train.init is not None:
        training.load_initial_weights(training.config.train.init)
    if training.workers.is_main:  # after the restore: a configuration that it refuses sets nothing aside
        training.store.set_aside(newer_than=found)
    training.check_classes(is_needed=train_stream.is_adaptive)
    for callback in training.callbacks:
        callback.on_fit_start(training)


def _train_epoch(training: Training, train_stream: SampleStream, val_stream: SampleStream | None) -> None:
    """The rest of the current epoch, from the cursor on."""
    config, cursor, clock = training.config, training.cursor, training.clock
    training.enter_epoch()
    _begin_phase(training, "train", training.batches_per_epoch)
    batches: Iterator[Batch] | None = None
    after = training.progress
    while cursor.batch < training.batches_per_epoch and not training.finished:
        if batches is None:
            batches = train_stream.batches(cursor.epoch, cursor.batch, training.order_scores)
            if not training.is_rehearsed:
                with training.clock.span("restart"):
                    batches = rehearse(training, batches, val_stream)
        passes = training.accumulation.passes_from(cursor.epoch, cursor.batch)
        if passes == 0:  # the batches that are left make no step: read past them, so that the stream stays in order
            with training.clock.span("data_wait"):
                for _ in batches:
                    pass
            break
        before = after
        clock.enter("step")
        record = train_step(training, batches, passes)
        clock.move(record.data_wait_s, "step", "data_wait")
        clock.enter("callback")
        training.meter.update(record)
        for callback in training.step_callbacks:
            callback.on_step_end(training, record)
        clock.enter("other")
        after = training.progress
        if config.train.log_every.passed(before, after):
            _publish_interval(training)
        improved = _due(config.eval.every, before, after) and _evaluate(training, val_stream, scheduled=True)
        # The last step is saved when all that belongs to the end is done: a resumed run finds nothing more to do.
        if not training.finished and (improved or _due(config.checkpoint.every, before, after)):
            _checkpoint(training)
        if training.phase != "train":
            _begin_phase(training, "train", training.batches_per_epoch)


def _finish_epoch(training: Training, train_stream: SampleStream, val_stream: SampleStream | None) -> None:
    """The end of an epoch, or of the training inside of one: evaluation, checkpoint, and the end for the callbacks.

    The cursor moves to the next epoch first, so that the checkpoint starts there. A training that ends inside of an
    epoch leaves the cursor where it is: it can be extended from there.
    """
    config, cursor = training.config, training.cursor
    before = training.progress
    if cursor.batch == training.batches_per_epoch or not training.accumulation.passes_from(cursor.epoch, cursor.batch):
        cursor.epoch, cursor.batch = cursor.epoch + 1, 0
    after, last = training.progress, training.finished
    _publish_interval(training)
    scheduled = _due(config.eval.every, before, after)
    improved = (last or scheduled) and _evaluate(training, val_stream, scheduled)
    _list_corrupt_samples(training, [stream for stream in (train_stream, val_stream) if stream])
    training.publish(training.clock.metrics())
    if last or improved or _due(config.checkpoint.every, before, after):
        _checkpoint(training)
    with training.clock.span("callback"):
        for callback in training.callbacks:
            callback.on_epoch_end(training, training.metrics)
    if training.finished and not last:  # a callback has asked for the end
        _evaluate(training, val_stream, scheduled=False)
        _checkpoint(training)


def _due(every: Every | None, before: Progress, after: Progress) -> bool:
    return every is not None and every.passed(before, after)


def _list_corrupt_samples(training: Training, streams: Sequence[SampleStream]) -> None:
    """Count the samples that were skipped in all attempts, and list them in ``run_dir/corrupt_samples.txt``."""
    if training.config.data.max_corrupt_fraction == 0.0:
        return
    for stream in streams:
        for part in training.workers.gather(list(stream.corrupt_samples)):
            stream.note_corrupt(part)
    found = {sample.message for stream in streams for sample in stream.corrupt_samples}
    training.corrupt_samples = sorted(found.union(training.corrupt_samples))
    training.publish({"perf/corrupt_samples": float(len(training.corrupt_samples))})
    if training.workers.is_main:
        listing = "".join(f"{message}\n" for message in training.corrupt_samples)
        (training.run_dir / "corrupt_samples.txt").write_text(listing, encoding="utf-8")


def _begin_phase(training: Training, phase: str, total: int) -> None:
    training.phase = phase
    with training.clock.span("callback"):
        for callback in training.callbacks:
            callback.on_phase(training, phase, total)


def _publish_interval(training: Training) -> None:
    """Losses, rates and use of the machine since the last report, with the epoch as a fraction."""
    with training.clock.span("step"):  # on a GPU, the wait for the steps that are still at work
        training.finite.settle()
        metrics = training.meter.reduce(training.workers, training.timer)
    if metrics:
        epoch = training.cursor.epoch + training.cursor.batch / training.batches_per_epoch
        training.publish({**metrics, "train/epoch": epoch, **training.system.metrics(), **training.finite.metrics()})


def _evaluate(training: Training, stream: SampleStream | None, scheduled: bool) -> bool:
    """Evaluate once per step; ``True`` if the model is the best so far, which a checkpoint must then hold.

    Only a ``scheduled`` evaluation, due by ``eval.every``, moves the scores that later epochs are ordered by, and is
    judged by ``EarlyStop``: the one after the last step would otherwise make a run that goes on another one than a run
    that was planned as long.
    """
    before, now, config = training.evaluated, training.progress, training.config.eval
    if stream is None or before.steps == now.steps:
        return False
    _begin_phase(training, "val", evaluated_batches(training, stream))
    num_panels = config.panels if config.panels_every is None or config.panels_every.passed(before, now) else 0
    training.finite.settle()
    with training.clock.span("evaluation"):
        scores = training.class_scores
        metrics, panels = evaluate(training, stream, num_panels)
    training.evaluated, training.evaluation_was_due = now, scheduled
    if not scheduled:
        training.class_scores = scores
    training.publish(metrics)
    if panels and training.workers.is_main:
        with training.clock.span("callback"):
            for callback in training.callbacks:
                callback.on_panels(training, panels, training.cursor.step)
    return training.takes_as_best(metrics[training.config.eval.metric])


def _checkpoint(training: Training) -> None:
    _begin_phase(training, "checkpoint", 1)
    keep_every, now = training.config.checkpoint.keep_every, training.progress
    permanent = keep_every is not None and keep_every.passed(training.saved, now)
    training.finite.settle()
    with training.clock.span("checkpoint"):
        state = training.state_dict()
        if training.workers.is_main:
            path = training.store.save(state, step=now.steps, metrics=_measured(training), permanent=permanent)
            for callback in training.callbacks:
                callback.on_checkpoint(training, path)
        training.workers.barrier()
    training.saved = now


def _measured(training: Training) -> dict[str, float]:
    """The finite numbers that describe the weights of now: those of an evaluation only if it was of these weights."""
    current = training.evaluated.steps == training.cursor.step
    return {
        name: value
        for name, value in training.metrics.items()
        if math.isfinite(value) and (current or not name.startswith("val/"))
    }
