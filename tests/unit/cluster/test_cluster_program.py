"""What a run streams: its splits, and how batches reach the device of its worker."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

import sensorlab.experiment
from sensorlab.cluster import program
from sensorlab.cluster.preflight import Share
from sensorlab.cluster.program import (
    TRAIN,
    VAL,
    EngineProgram,
    budget_of,
    least_object_store,
    next_cursor,
    place_of,
    stream_specs,
    validation_spec,
)
from sensorlab.cluster.worker import RunSpec
from sensorlab.config import as_dict
from sensorlab.data.dataset import Manifest, Sensors, SplitInfo
from sensorlab.data.local_stream import LocalStream
from sensorlab.data.schema import SCHEMA_VERSION
from sensorlab.data.shards import ShardInfo
from sensorlab.engine.fit import FitResult, fit
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ExperimentConfig,
    ResourcesConfig,
    TrainConfig,
)
from toy_images import TRAIN_SAMPLES, VAL_SAMPLES, ToyImageConfig, ToyImageTask, streams, write_splits


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Writes a dataset with the given splits."""
    monkeypatch.setattr(program, "build_task", lambda config: ToyImageTask(config.task))
    write_splits(tmp_path)

    def make(*names: str) -> str:
        sizes = {"train": TRAIN_SAMPLES, "val": VAL_SAMPLES}
        splits = {
            name: SplitInfo(
                num_samples=sizes[name], scenes=("scene",), shards=(_shard(f"{name}.parquet", sizes[name]),)
            )
            for name in names
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            tool_version="test",
            source={"kind": "test"},
            origin="nowhere",
            digest="toy-images",
            num_samples=sum(info.num_samples for info in splits.values()),
            num_boxes=0,
            sensors=Sensors(),
            classes={},
            splits=splits,
        )
        (tmp_path / "manifest.json").write_text(json.dumps(as_dict(manifest)))
        return str(tmp_path)

    return make


def _shard(file: str, samples: int) -> ShardInfo:
    rows = tuple(min(4, samples - first) for first in range(0, samples, 4))
    return ShardInfo(file=file, rows=rows, bytes=0, sha256="")


def experiment(**data) -> ExperimentConfig:
    return ExperimentConfig(
        name="toy",
        task=ToyImageConfig(),
        data=DataConfig(path="d", global_batch=4, **data),
        train=TrainConfig(duration="1 epoch"),
    )


def test_both_splits_are_streamed(prepared):
    specs = stream_specs(experiment(val_batch=2, max_samples=8), prepared("train", "val"))
    assert {name: spec.split.name for name, spec in specs.items()} == {TRAIN: "train", VAL: "val"}
    assert [(spec.training, spec.global_batch) for spec in specs.values()] == [(True, 4), (False, 2)]
    assert [spec.split.num_samples for spec in specs.values()] == [8, 8]


def test_a_fraction_cuts_the_training_alone(prepared):
    dataset = prepared("train", "val")
    half, whole = (stream_specs(experiment(train_fraction=share), dataset) for share in (0.5, 1.0))
    assert half[TRAIN].split.num_samples == round(TRAIN_SAMPLES / 2)
    assert (
        half[TRAIN].plan.fingerprint
        != whole[TRAIN].plan.fingerprint
        == stream_specs(experiment(), dataset)[TRAIN].plan.fingerprint
    )
    assert half[VAL].plan.fingerprint == whole[VAL].plan.fingerprint
    few = stream_specs(experiment(max_samples=8, train_fraction=0.5), dataset)
    assert [spec.split.num_samples for spec in few.values()] == [4, 8]
    first = set(range(8))
    assert {
        row for _, group, size in few[TRAIN].split.row_groups.tolist() for row in range(4 * group, 4 * group + size)
    } <= first
    with pytest.raises(ValueError, match="train_fraction"):
        experiment(train_fraction=0.0)


def test_a_dataset_without_training_split_can_be_validated_but_not_trained_on(prepared):
    dataset = prepared("val")
    spec = validation_spec(experiment(), dataset)
    assert spec.plan.samples_per_epoch == VAL_SAMPLES
    stream = LocalStream(spec)
    assert sum(len(batch["label"]) for batch in stream.batches(0)) >= VAL_SAMPLES
    with pytest.raises(UserError, match="has no split 'train'; its splits are val"):
        stream_specs(experiment(), dataset)


def test_the_validation_of_a_training_is_the_one_alone(prepared):
    dataset, config = prepared("train", "val"), experiment(val_batch=2)
    alone, beside = validation_spec(config, dataset), stream_specs(config, dataset)[VAL]
    assert alone.plan.fingerprint == beside.plan.fingerprint
    assert alone.config == beside.config


@pytest.mark.parametrize("data_cpus", [0.25, 3.0])
def test_streams_keep_to_the_share_of_their_run(prepared, data_cpus):
    dataset, config = prepared("train", "val"), experiment()
    config = config.model_copy(update={"resources": ResourcesConfig(data_cpus=data_cpus)})
    specs = stream_specs(config, dataset, Share(object_store=1000))
    # Tasks of both streams hold CPUs at the same time.
    assert sum(spec.config.tasks * spec.config.task_cpus for spec in specs.values()) == pytest.approx(data_cpus)
    assert {spec.config.object_store for spec in specs.values()} == {1000}
    free = stream_specs(config, dataset)
    assert {spec.config.object_store for spec in free.values()} == {None}
    assert [spec.plan.fingerprint for spec in specs.values()] == [spec.plan.fingerprint for spec in free.values()]


def test_what_streams_need_of_the_object_store_is_that_of_their_batches(prepared):
    dataset = prepared("train", "val")
    once, twice = (least_object_store(experiment(val_batch=batch), dataset) for batch in (4, 8))
    assert 1.4 < twice / once < 1.6  # one of two streams has batches of twice the size


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda:1", True)])
def test_memory_is_pinned_for_copies_to_a_gpu(device, pinned):
    workers = WorkerGroup(1, 2, torch.device(device))
    assert place_of(workers) == {"rank": 1, "world_size": 2, "pin_memory": pinned}


def training(dataset: str, **train) -> ExperimentConfig:
    """Seven batches an epoch, a step each."""
    return ExperimentConfig(
        name="toy",
        task=ToyImageConfig(),
        data=DataConfig(path=dataset, global_batch=4),
        train=TrainConfig.model_validate({"duration": "3 epochs", **train}),
        eval=EvalConfig(metric="val/accuracy"),
        checkpoint=CheckpointConfig(every="1 step", keep_latest=99),
    )


def spec_of(config: ExperimentConfig, run_dir) -> RunSpec:
    return RunSpec(as_dict(config), str(run_dir), config.data.path, EngineProgram())


def fit_toy(config: ExperimentConfig, run_dir) -> FitResult:
    task = ToyImageTask(config.task)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(contextlib.closing(stream)) for stream in streams(config, task)]
        return fit(config, task, *opened, run_dir=run_dir)


def test_streams_begin_where_training_goes_on(prepared, tmp_path):
    dataset, run_dir = prepared("train", "val"), tmp_path / "run"
    sliced, whole = training(dataset, until="1 epoch"), training(dataset)
    assert next_cursor(spec_of(sliced, run_dir), sliced) == (0, 0)
    assert (budget_of(sliced, 7).epochs, budget_of(whole, 7).epochs) == (1, 3)
    fit_toy(sliced, run_dir)
    assert next_cursor(spec_of(sliced, run_dir), sliced) is None
    assert next_cursor(spec_of(whole, run_dir), whole) == (1, 0)


def test_streams_of_a_fork_begin_at_the_cursor_of_its_donor(prepared, tmp_path):
    dataset = prepared("train", "val")
    fit_toy(training(dataset, until="1 epoch"), tmp_path / "donor")
    checkpoints, run_dir = tmp_path / "donor" / "checkpoints", tmp_path / "fork"

    def cursor(step: int, **keys):
        config = training(dataset, fork={"checkpoint": str(checkpoints / f"step-{step:08d}")}, **keys)
        return next_cursor(spec_of(config, run_dir), config)

    assert cursor(5) == (0, 5)
    assert cursor(7) == (1, 0)
    assert cursor(7, until="1 epoch") is None  # which the engine refuses
    fit_toy(training(dataset, until="2 epochs", fork={"checkpoint": str(checkpoints / "step-00000005")}), run_dir)
    for donor in (5, 99):  # its own checkpoints count from now on
        assert cursor(donor) == (2, 0)


def test_a_fork_that_cannot_be_is_refused_before_anything_is_streamed(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(sensorlab.experiment, "task_class", lambda name: ToyImageTask)
    dataset = prepared("train", "val")
    last = fit_toy(training(dataset, until="1 epoch"), tmp_path / "donor").last_checkpoint
    missing = training(dataset, fork={"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"train\.fork\.checkpoint: there is no directory .*nowhere"):
        EngineProgram().datasets(spec_of(missing, tmp_path / "fork"))
    config = training(dataset, fork={"checkpoint": str(last)})
    other = config.model_copy(update={"data": config.data.model_copy(update={"global_batch": 8})})
    with pytest.raises(UserError, match=r"data\.global_batch: 4 -> 8"):  # 3 batches an epoch: none is the seventh
        EngineProgram().datasets(spec_of(other, tmp_path / "fork"))
