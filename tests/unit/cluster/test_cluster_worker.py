"""The train function without Ray: reports, files, and what counts as the user's mistake."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_program import ToyProgram

from sensorlab.cluster.files import PROGRESS, REPORT, RESULT, read_json
from sensorlab.cluster.trainer import trains_in_process
from sensorlab.cluster.trial import Once
from sensorlab.cluster.worker import Reporter, RunSpec, keep_report, train_worker, user_error_in
from sensorlab.config import as_dict, digest
from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.fit import fit
from sensorlab.engine.training import Cursor
from sensorlab.errors import UserError
from sensorlab.experiment import EvalConfig, ResourcesConfig, experiment_from
from toy import ToyStream, ToyTask, toy_experiment


@pytest.fixture
def spec(tmp_path):
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "3 epochs"},
        "optim": {"lr": 1e-3},
    }
    return RunSpec(as_dict(experiment_from(tree)), str(tmp_path / "run"), "d", ToyProgram())


def test_every_evaluated_epoch_is_reported_with_the_digest_of_what_was_trained(spec, tmp_path):
    reports = []
    result = train_worker({"spec": spec, "send": reports.append})
    assert [r["epoch"] for r in reports] == [1, 2, 3]
    assert {r["config_digest"] for r in reports} == {digest(experiment_from(spec.experiment))}
    assert reports[-1]["objective"] == reports[-1]["metrics"]["val/iou"]
    assert result["epochs"] == 3
    assert read_json(tmp_path / "run" / REPORT)["epoch"] == 3
    assert read_json(tmp_path / "run" / RESULT)["epochs"] == 3
    assert read_json(tmp_path / "run" / PROGRESS)["epoch"] == 3.0


def test_a_program_that_ignores_its_configuration_is_told_by_its_digest(spec):
    reports = []
    deceiving = RunSpec(
        spec.experiment | {"optim": {"lr": 0.5}}, spec.run_dir, "d", ToyProgram(ignore_configuration=True)
    )
    train_worker({"spec": deceiving, "send": reports.append})
    assert reports[0]["config_digest"] != digest(experiment_from(deceiving.experiment))


def test_a_stop_inside_of_a_report_unwinds_the_training(spec, tmp_path):
    def stop(report):
        if report["epoch"] == 2:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        train_worker({"spec": spec, "send": stop})
    assert (tmp_path / "run" / "ended-SystemExit").exists()
    assert not (tmp_path / "run" / RESULT).exists()
    assert read_json(tmp_path / "run" / REPORT)["epoch"] == 2


def test_progress_that_cannot_be_written_does_not_end_the_training(spec, tmp_path, capsys):
    (tmp_path / "run" / PROGRESS / "occupied").mkdir(parents=True)  # a directory cannot be replaced by the file
    assert train_worker({"spec": spec, "send": keep_report})["epochs"] == 3
    assert capsys.readouterr().err.count("warning: the progress cannot be written") == 1


def test_epochs_without_evaluation_are_not_reported(spec):
    sent = []
    reporter = Reporter(spec, "val/iou", "max", sent.append)
    training = SimpleNamespace(
        config=experiment_from(spec.experiment),
        cursor=Cursor(1, 0, 5),
        workers=SimpleNamespace(is_main=False, gather=lambda value: [value, value]),
        store=SimpleNamespace(best=lambda: None),
        protocols={},
        finished=False,
    )
    reporter.on_metrics(training, {"train/loss": 1.0}, 5)
    reporter.on_epoch_end(training, {"train/loss": 1.0})
    assert sent == []
    reporter.on_metrics(training, {"val/iou": math.nan}, 6)
    reporter.on_epoch_end(training, {"train/loss": 1.0, "val/iou": math.nan})
    assert sent[0]["objective"] == -math.inf  # schedulers compare numbers
    assert "val/iou" not in sent[0]["metrics"]


def test_workers_that_train_different_configurations_do_not_report(spec):
    sent = []
    reporter = Reporter(spec, "val/iou", "max", sent.append)
    training = SimpleNamespace(
        config=experiment_from(spec.experiment),
        cursor=Cursor(1, 0, 5),
        workers=SimpleNamespace(is_main=False, gather=lambda value: [value, "another"]),
        store=SimpleNamespace(best=lambda: None),
        protocols={},
        finished=False,
    )
    reporter.on_metrics(training, {"val/iou": 0.5}, 5)
    with pytest.raises(RuntimeError, match=r"train different configurations \(rank 0: \w+, rank 1: another\)"):
        reporter.on_epoch_end(training, {"val/iou": 0.5})
    assert sent == []


class End(BaseException):
    """Stands for SIGKILL: nothing in the loop may hide it."""


class EndsBeforeTheReport(Callback):
    """Ends the training at the end of an epoch: after its checkpoint, before its report."""

    priority = 89

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, training, metrics):
        if training.cursor.epoch == self._epoch:
            raise End


def attempt(spec, send, *callbacks):
    """Train the toy to its end from its latest checkpoint, with a reporter as every worker has one."""
    config = toy_experiment(eval=EvalConfig(metric="val/mse", mode="min"))
    task = ToyTask(config.task)
    streams = (ToyStream(12, 4, task), ToyStream(6, 4, task, training=False))
    reporter = Reporter(spec, "val/mse", "min", send)
    fit(config, task, *streams, run_dir=Path(spec.run_dir), callbacks=[reporter, *callbacks])


def test_a_report_that_was_lost_between_checkpoint_and_report_is_sent_by_the_next_attempt(spec):
    straight, first, second = [], [], []
    attempt(replace(spec, run_dir=f"{spec.run_dir}-straight"), straight.append)
    with pytest.raises(End):
        attempt(spec, first.append, EndsBeforeTheReport(epoch=2))
    assert [report["epoch"] for report in first] == [1]
    attempt(spec, second.append)
    assert [report["epoch"] for report in second] == [2, 3], "epoch 2 was lost"
    for report, expected in zip(first + second, straight, strict=True):
        assert (report["step"], report["objective"]) == (expected["step"], expected["objective"])


def test_the_report_of_the_last_epoch_is_not_lost_either(spec):
    sent = []
    with pytest.raises(End):
        attempt(spec, sent.append, EndsBeforeTheReport(epoch=3))
    attempt(spec, sent.append)
    assert [report["epoch"] for report in sent] == [1, 2, 3]


def test_a_report_that_was_sent_before_the_end_reaches_the_scheduler_once(spec):
    reached = []

    def sent_then_killed(report):
        reached.append(report)
        if report["epoch"] == 2:
            raise End

    with pytest.raises(End):
        attempt(spec, sent_then_killed)
    # What a trial does that starts again: the last report on disk first, since nobody knows whether it arrived.
    again = []
    send = Once(again.append)
    send(read_json(Path(spec.run_dir) / REPORT))
    attempt(spec, send)
    assert [report["epoch"] for report in reached] == [1, 2]
    assert [report["epoch"] for report in again] == [2, 3]


@dataclass
class WrappedError(Exception):
    worker_failures: dict


def test_the_users_mistake_is_found_inside_of_rays_exceptions():
    inner = UserError("shard 3 is damaged")
    chained = RuntimeError("outer")
    chained.__cause__ = inner
    assert user_error_in(WrappedError({0: chained})) == "shard 3 is damaged"
    assert user_error_in(FloatingPointError("loss is nan")) == "training diverged: loss is nan"
    assert user_error_in(RuntimeError("a bug")) is None
    looping = RuntimeError("loop")
    looping.__cause__ = looping
    assert user_error_in(looping) is None


def test_keep_report_needs_no_ray(spec):
    assert train_worker({"spec": spec, "send": keep_report})["steps"] == 30


def devices(monkeypatch, spec, gpus, cuda):
    """Device of each training that this process starts; ``cuda``: whether PyTorch says that it sees a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    seen = []

    class Program(ToyProgram):
        def train(self, context):
            seen.append(context.workers.device)
            return super().train(context)

    tree = dict(spec.experiment) | {"resources": {"gpus_per_worker": gpus}}
    train_worker({"spec": RunSpec(tree, spec.run_dir, "d", Program()), "send": keep_report})
    return seen


def test_a_run_trains_on_the_device_that_it_has_reserved(spec, monkeypatch):
    assert devices(monkeypatch, spec, gpus=0, cuda=True) == [torch.device("cpu")]
    assert devices(monkeypatch, spec, gpus=1, cuda=True) == [torch.device("cuda", 0)]


def test_a_reserved_gpu_that_is_not_there_is_the_users_mistake(spec, monkeypatch):
    with pytest.raises(UserError, match=r"resources\.gpus_per_worker is 1, but PyTorch sees no GPU"):
        devices(monkeypatch, spec, gpus=1, cuda=False)


@pytest.mark.parametrize(
    ("workers", "in_process", "in_sweep", "local", "expected"),
    [
        (1, True, False, True, True),
        (1, True, False, False, False),  # the driver of another cluster does not train
        (1, True, True, False, True),  # a trial does, wherever it was placed
        (2, True, True, True, False),
        (1, False, False, True, False),
    ],
)
def test_where_a_run_trains(workers, in_process, in_sweep, local, expected):
    resources = ResourcesConfig(num_workers=workers, in_process=in_process)
    assert trains_in_process(resources, in_sweep=in_sweep, local=local) is expected
