"""The experiment: one complete, typed, digestible description of a training.

``ExperimentConfig`` is the tree of every component's ``Config``. A YAML file plus overrides becomes one through
:func:`load_experiment`; its :func:`~sensorlab.config.digest` identifies what was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from sensorlab.config import (
    StrictModel,
    apply_overrides,
    as_dict,
    canonical_json,
    digest,
    flatten,
    load_yaml,
    merge,
    validate,
)
from sensorlab.data.sampling import ImageWeightsSampling, SamplingConfig, ShuffledSampling
from sensorlab.engine.accumulate import AccumulateConfig
from sensorlab.engine.budget import ExtendConfig
from sensorlab.engine.callbacks.diagnostics import DiagnosticsConfig
from sensorlab.engine.callbacks.early_stop import EarlyStopConfig
from sensorlab.engine.duration import Duration, Every
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fork import ForkConfig
from sensorlab.engine.freeze import FreezeRule
from sensorlab.engine.multi_scale import MultiScaleConfig
from sensorlab.engine.optim import ClipConfig, OptimConfig
from sensorlab.engine.presets import with_preset
from sensorlab.engine.schedules import OneCycleSchedule, PiecewiseSchedule, ScheduleConfig
from sensorlab.engine.warmup import WarmupConfig
from sensorlab.errors import UserError
from sensorlab.models.weights import ShapePolicy
from sensorlab.tasks.base import task_class


class PrepareConfig(StrictModel):
    """How to make the dataset when ``data.path`` does not exist yet."""

    source: Literal["synthetic", "nuscenes"]
    dataroot: str | None = None  # nuscenes: the dataroot to read
    version: str = "v1.0-mini"
    sweeps: int = Field(default=1, ge=1)  # sweeps per radar and lidar, the keyframe's included
    image_height: int | None = Field(default=None, ge=16)  # re-encode images to this height; None keeps them
    val_scenes: tuple[str, ...] = ()  # scene names of the val split; empty: by the rule of the source
    scenes: int = Field(default=8, ge=2)  # synthetic: number of scenes
    keyframes: int = Field(default=10, ge=1)  # synthetic: keyframes per scene
    seed: int = 0  # synthetic


class DataConfig(StrictModel):
    """Which samples are seen, in which batches, and who decodes them."""

    path: str  # prepared dataset; relative: below the working directory if it is there, else below the output root
    prepare: PrepareConfig | None = None
    train_split: str = "train"
    val_split: str = "val"
    global_batch: int = Field(default=8, ge=1)  # samples per forward pass, over all workers
    val_batch: int | None = Field(default=None, ge=1)  # None: global_batch
    last_batch: Literal["drop", "pad"] = "drop"  # the partial last training batch of an epoch
    max_samples: int | None = Field(default=None, ge=1)  # at most so many samples of each split: its first ones
    train_fraction: float = Field(default=1.0, gt=0.0, le=1.0)  # of the training split, from all over it
    augment: bool = True  # false: training samples are transformed as in evaluation
    sampling: SamplingConfig = ShuffledSampling()  # which samples an epoch visits, and in which order
    max_batches: int | None = Field(default=None, ge=1)  # global batches of a training epoch; null: all
    shuffle_window: int = Field(default=16, ge=1)  # row groups that are mixed with each other
    transform_in: Literal["worker", "task"] = "worker"  # decode in the worker's threads, or in Ray tasks
    threads: int = Field(default=2, ge=1)  # decode threads per worker
    prefetch: int = Field(default=4, ge=1)  # batches decoded ahead per worker
    max_corrupt_fraction: float = Field(default=0.0, ge=0.0, le=1.0)  # share of samples that may be skipped


class InitConfig(StrictModel):
    """Weights to start from: a foreign checkpoint, or an earlier run's. Patterns are regular expressions."""

    path: str  # .safetensors, or a PyTorch checkpoint of tensors only
    include: tuple[str, ...] = ()  # empty: every name
    exclude: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) on the names of the file
    on_shape_mismatch: ShapePolicy = "error"  # inflate_input: input channels that the file lacks stay new


class TrainConfig(StrictModel):
    """Budget and arithmetic of the training loop."""

    duration: Duration  # 12 epochs, 25000 steps or 1000000 samples; steps are optimiser steps
    extend: ExtendConfig | None = None  # goes on beyond duration; may be added to a run that is resumed
    until: Duration | None = None  # ends here, inside of its schedule; a resumed run may move it or leave it out
    accumulate: AccumulateConfig = AccumulateConfig()
    clip: ClipConfig | None = ClipConfig(value=5.0)  # null: gradients are not clipped
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False  # torch.compile; what cannot be compiled runs as it is, and says so
    sync_batchnorm: bool = False  # batch norm over the samples of all workers
    freeze: tuple[FreezeRule, ...] = ()  # parameters that are not trained, in all or some epochs
    multi_scale: MultiScaleConfig | None = None  # images of another size every few batches
    ema: EmaConfig | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_budget: int = Field(default=10, ge=0)  # skipped steps allowed with nonfinite: skip
    dry_run: bool = True  # try one training and one validation batch before the first step
    early_stop: EarlyStopConfig | None = None  # end when eval.metric no longer improves
    log_every: Every = Every.parse("10 steps")  # means over the interval; an interval ends with the epoch at the latest
    init: InitConfig | None = None  # starts a new run from weights; a resumed run has its own
    fork: ForkConfig | None = None  # starts a new run from the whole state of another; a resumed run has its own

    @model_validator(mode="after")
    def _same_unit(self) -> TrainConfig:
        if self.extend is not None and self.extend.duration.unit != self.duration.unit:
            raise ValueError(f"extend.duration must be in {self.duration.unit}, as duration is")
        return self

    @model_validator(mode="after")
    def _ends_in_its_schedule(self) -> TrainConfig:
        if self.until is None:
            return self
        if self.until.unit != self.duration.unit:
            raise ValueError(f"until must be in {self.duration.unit}, as duration is")
        end = Duration(self.duration.count + (self.extend.duration.count if self.extend else 0), self.duration.unit)
        if self.until.count > end.count:
            raise ValueError(f"until={self.until} is behind the end of the training, {end}; leave it out, or extend")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> TrainConfig:
        if self.init is not None and self.fork is not None:
            raise ValueError("init and fork: a run starts from weights or from a whole state; set one of them to null")
        return self


class EvalConfig(StrictModel):
    """When to evaluate and what to draw."""

    every: Every | None = Every.parse("1 epoch")  # or a list: [1 epoch, 500 steps]; null: only after the last step
    max_batches: int | None = Field(default=None, ge=1)
    panels: int = Field(default=2, ge=0)  # pictures per evaluation
    panels_every: Every | None = None  # pictures at the first evaluation after each of these; null: at every one
    metric: str = "val/iou"  # what "best" means
    mode: Literal["min", "max"] = "max"


class CheckpointConfig(StrictModel):
    """When to save and what to keep. A checkpoint is always written after the last step."""

    every: Every | None = Every.parse("1 epoch")
    keep_latest: int = Field(default=2, ge=1)
    keep_every: Every | None = None  # the first checkpoint after each of these is kept for good


class TrackingConfig(StrictModel):
    """Where runs are recorded."""

    uri: str | None = None  # None: MLFLOW_TRACKING_URI, else sqlite:///mlruns.db beside the output directory
    experiment: str = "sensorlab"


class ResourcesConfig(StrictModel):
    """What one training occupies."""

    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)  # below 1: a part of one GPU, which several trainings share
    memory_gb: float | None = Field(default=None, gt=0)  # of the host, reserved per worker; null: 2 where there is that
    data_cpus: float = Field(default=0.5, gt=0)  # for the Ray Data tasks of one training
    in_process: bool = True  # a single worker runs in the process that asks for it, without a worker group

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus_are_whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"{value:g} GPUs: a part of one GPU (below 1) or a whole number of them")
        return value

    @model_validator(mode="after")
    def _ranks_have_gpus_of_their_own(self) -> ResourcesConfig:
        if self.num_workers > 1 and 0 < self.gpus_per_worker <= 0.5:
            raise ValueError(
                f"{self.num_workers} workers with gpus_per_worker={self.gpus_per_worker:g} would share a GPU, and NCCL "
                "connects no two workers on one: set num_workers=1, or gpus_per_worker above 0.5"
            )
        return self


class ExperimentConfig(StrictModel):
    """Everything that determines a training. ``preset: NAME`` in its file starts from the optimisation settings of an
    original system (``engine/presets.py``).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,80}$")  # first part of the names of its runs and sweeps
    seed: int = 0  # of the weights, the order of the samples and every random draw
    task: SerializeAsAny[StrictModel]
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = OneCycleSchedule()  # of the learning rate; keys without a name set the default one
    warmup: WarmupConfig | None = None  # of the learning rate, on top of the schedule
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    output_dir: str = "outputs"  # runs, sweeps and what is prepared; see SENSORLAB_OUTPUT_ROOT for clusters

    @field_validator("task", mode="before")
    @classmethod
    def _task_of_its_name(cls, value: Any) -> Any:
        if isinstance(value, StrictModel):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError("a mapping with the 'name' of a task")
        return validate(task_class(value["name"]).Config, value, where="its task", prefix="task.")

    @model_validator(mode="after")
    def _warmup_fits(self) -> ExperimentConfig:
        ramp, warmup = self.train.accumulate.ramp, self.warmup
        unequal = ramp or self.train.accumulate.window != "epoch"
        if ramp and (warmup is None or warmup.unit != "epochs"):
            raise ValueError("train.accumulate.ramp needs a warmup with unit: epochs")
        if unequal and isinstance(self.schedule, PiecewiseSchedule) and self.schedule.unit == "epochs":
            raise ValueError("train.accumulate makes epochs of unequal steps here: give the pieces in unit: steps")
        if warmup is None:
            return self
        if warmup.momentum_start is not None and self.optim.name != "sgd":
            raise ValueError(f"warmup.momentum_start needs optim.name=sgd, not {self.optim.name}")
        groups = {"default", *(rule.name for rule in self.optim.groups)}
        if unknown := sorted(warmup.group_start.keys() - groups):
            raise ValueError(f"warmup.group_start: no groups {unknown} in optim.groups; there are {sorted(groups)}")
        return self

    @model_validator(mode="after")
    def _evaluations_come(self) -> ExperimentConfig:
        if self.eval.every is not None:
            return self
        if isinstance(self.data.sampling, ImageWeightsSampling):
            raise ValueError(
                "data.sampling.name=image_weights follows the class scores of evaluations, and with eval.every=null "
                "there is none before the end, so that its weights would never change: set eval.every"
            )
        if self.train.early_stop is not None:
            raise ValueError(
                "train.early_stop judges evaluations, and with eval.every=null there is none before the end: set "
                "eval.every"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> ExperimentConfig:
        for key in ("global_batch", "val_batch"):
            batch = getattr(self.data, key)
            if batch is not None and batch % self.resources.num_workers:
                raise ValueError(
                    f"data.{key}={batch} does not divide by resources.num_workers={self.resources.num_workers}"
                )
        return self


def load_file(path: str | Path, debug: bool = False) -> dict[str, Any]:
    """The tree of an experiment file, with or without what its ``debug`` section changes; the section itself is gone.

    A ``debug`` section is written as the file is, and makes the experiment so small that it runs in seconds.

    Raises:
        UserError: unreadable, or to be debugged without such a section.
    """
    tree = load_yaml(path)
    changes = tree.pop("debug", None)
    if not debug:
        return tree
    if not isinstance(changes, Mapping):
        raise UserError(f"{path} has no 'debug' section that makes it small; write one, or leave out --debug")
    return {**merge(tree, changes), "name": f"{tree.get('name', '')}_debug"}


def load_experiment(path: str | Path, overrides: Iterable[str] = (), debug: bool = False) -> ExperimentConfig:
    """The experiment of a YAML file with command-line overrides. A ``sweep`` section is left to the sweep.

    Args:
        debug: apply the file's ``debug`` section first.

    Raises:
        UserError: unreadable or invalid; the message names file, key and the nearest valid key.
    """
    tree = apply_overrides(load_file(path, debug), overrides)
    tree.pop("sweep", None)
    return experiment_from(tree, where=str(path))


def experiment_from(tree: Mapping[str, Any], where: str = "configuration") -> ExperimentConfig:
    """The experiment of a nested mapping, for example one that ``as_dict`` made, or one that names a ``preset``."""
    tree = with_preset(tree, where)
    # Here, not in a validator: after one, pydantic refuses lists for tuples.
    tree = _with_default_name(tree, "schedule", OneCycleSchedule().name)
    if isinstance(tree.get("data"), Mapping):
        tree = {**tree, "data": _with_default_name(tree["data"], "sampling", ShuffledSampling().name)}
    return validate(ExperimentConfig, tree, where)


def _with_default_name(tree: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    """Keys of a tagged section without a name set those of the default one."""
    content = tree.get(section)
    return {**tree, section: {"name": name, **content}} if isinstance(content, Mapping) else tree


# What may differ between a checkpoint's configuration and that of the run that resumes it: nothing that changes the
# samples, the model or the arithmetic. The number of workers may change: the global batches stay the same.
# docs/resume.md explains each.
RESUME_MAY_CHANGE = (
    "name",
    "output_dir",
    "data.path",  # the dataset digest is compared instead
    "data.prepare",
    "data.transform_in",
    "data.threads",
    "data.prefetch",
    "train.extend",
    "train.until",
    "train.nonfinite_budget",  # of a run that has used it up
    "train.dry_run",
    "train.log_every",
    "train.init",
    "train.fork",
    "eval.panels",
    "eval.panels_every",
    "checkpoint",
    "diagnostics",
    "tracking",
    "resources",
)


def refuse_changed(saved: Mapping[str, Any], current: ExperimentConfig) -> None:
    """Check that ``current`` may continue a run of the configuration ``saved``.

    Raises:
        UserError: lists every key that changed and may not.
    """
    old, new = flatten(saved), flatten(as_dict(current))
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if canonical_json(old.get(key)) != canonical_json(new.get(key))
        and not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUME_MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            "a resumed run may not change what it trains; start a new run, or restore:\n  " + "\n  ".join(changed)
        )


__all__ = ["ExperimentConfig", "digest", "experiment_from", "load_experiment", "load_file", "refuse_changed"]
