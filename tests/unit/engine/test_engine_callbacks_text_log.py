"""The text log: what its lines say, who writes them, and what a resumed run adds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from callback_runs import Interrupted, StopAfter, log_of, run

from sensorlab.engine.callbacks.early_stop import EarlyStop, EarlyStopConfig
from sensorlab.engine.callbacks.text_log import MAX_VALUES, TextLog, _values
from sensorlab.engine.callbacks.weight_norms import WeightNorms
from sensorlab.engine.duration import Duration, Every
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig
from sensorlab.engine.workers import WorkerGroup
from sensorlab.experiment import EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

NUMBER = r"-?[\d.]+(e-?\d+)?"
TRAIN_LINE = re.compile(
    rf"\d\d:\d\d:\d\d train epoch (?P<epoch>\d)/3 step (?P<step>\d+)/15  loss (?P<loss>{NUMBER})"
    rf"  squared {NUMBER}  small {NUMBER}  bias {NUMBER}  grad_norm {NUMBER}  lr {NUMBER}"
    rf"  data \d+ ms  step \d+ ms  {NUMBER} samples/s  memory {NUMBER} GiB  ETA \d+:\d\d:\d\d"
)
VAL_LINE = re.compile(
    rf"\d\d:\d\d:\d\d val   epoch (?P<epoch>\d)/3 step (?P<step>\d+)/15  mse (?P<mse>{NUMBER})"
    rf"  bias {NUMBER}  loss {NUMBER}  small {NUMBER}  squared {NUMBER}"
)


def lines_of(run_dir: Path, pattern: re.Pattern) -> list[dict[str, str]]:
    matches = [pattern.fullmatch(line) for line in (run_dir / "log.txt").read_text().splitlines()]
    return [match.groupdict() for match in matches if match]


def test_a_line_per_interval_and_per_evaluation_with_the_numbers_of_the_log(tmp_path):
    run(tmp_path, TextLog(to_terminal=False), eval=EvalConfig(metric="val/mse", mode="min"))
    train, val = lines_of(tmp_path, TRAIN_LINE), lines_of(tmp_path, VAL_LINE)
    # Every two steps, and where an epoch of five ends.
    assert [(line["epoch"], line["step"]) for line in train] == [
        *[("1", "2"), ("1", "4"), ("1", "5"), ("2", "6"), ("2", "8"), ("2", "10")],
        *[("3", "12"), ("3", "14"), ("3", "15")],
    ]
    assert [(line["epoch"], line["step"]) for line in val] == [("1", "5"), ("2", "10"), ("3", "15")]
    losses = [f"{value:.4g}" for _, name, value in log_of(tmp_path, "train/loss")]
    assert [line["loss"] for line in train] == losses
    assert [line["mse"] for line in val] == [f"{value:.4g}" for _, name, value in log_of(tmp_path, "val/mse")]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == len(train) + len(val) + 3  # what is trained, the callbacks, the end
    assert re.search(r"finished at step 15/15 after \d+:\d\d:\d\d$", lines[-1])


def test_says_what_is_trained_and_the_callbacks_in_their_order(tmp_path, capsys):
    run(tmp_path, TextLog(to_terminal=True))
    first, second, *_ = (tmp_path / "log.txt").read_text().splitlines()
    assert "toy: 3 epochs x 5 steps, 0.00 M parameters, 1 worker(s) on cpu, config " in first
    assert second.endswith("callbacks in order: JsonLog(70), TextLog(80)")
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text()


def test_without_a_terminal_nothing_is_printed(tmp_path, capsys):
    run(tmp_path, TextLog(to_terminal=False))
    assert capsys.readouterr().out == ""


def test_a_resumed_run_keeps_the_history_and_says_from_where_it_goes_on(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, TextLog(to_terminal=False), StopAfter(7))
    before = (tmp_path / "log.txt").read_text()
    assert "stopped at step 7: Interrupted" in before.splitlines()[-1]
    run(
        tmp_path,
        TextLog(to_terminal=False),
        eval=EvalConfig(metric="val/mse", mode="min", every=["1 epoch", "3 steps"]),
    )
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith(before)
    assert "resumed at epoch 1, batch 1, step 6" in text[len(before) :].splitlines()[2]
    straight = tmp_path / "straight"
    run(straight, TextLog(to_terminal=False))
    # From where it went on, the lines are those of an uninterrupted run, but for measured times.
    numbers = [(line["epoch"], line["step"], line["loss"]) for line in lines_of(straight, TRAIN_LINE)]
    resumed = [(line["epoch"], line["step"], line["loss"]) for line in lines_of(tmp_path, TRAIN_LINE)]
    assert resumed[-len([n for n in numbers if int(n[1]) > 6]) :] == [n for n in numbers if int(n[1]) > 6]


def test_a_fork_says_where_it_comes_from(tmp_path):
    run(tmp_path / "donor", TextLog(to_terminal=False))
    checkpoint = tmp_path / "donor" / "checkpoints" / "step-00000006"
    train = TrainConfig.model_validate({"duration": "3 epochs", "fork": {"checkpoint": str(checkpoint)}})
    run(tmp_path / "fork", TextLog(to_terminal=False), train=train)
    text = (tmp_path / "fork" / "log.txt").read_text()
    assert text.splitlines()[2].endswith(f"begins at epoch 1, batch 1, step 6 with the state of {checkpoint}")
    assert "resumed" not in text


def test_says_why_a_run_ended_early(tmp_path):
    stop = EarlyStop(EarlyStopConfig(patience=Duration.parse("1 epoch")))
    still = {"task": ToyConfig(norm=False), "optim": OptimConfig(lr=0.0)}
    run(tmp_path, TextLog(to_terminal=False), stop, eval=EvalConfig(metric="val/mse", mode="min"), **still)
    last = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert re.search(r"finished at step 10/15 after .*: val/mse has not improved for 1 epoch", last)


def test_norms_get_no_lines(tmp_path):
    run(tmp_path, TextLog(to_terminal=False), WeightNorms(Every.parse("1 step")))
    assert "norm/" not in (tmp_path / "log.txt").read_text()
    assert len(lines_of(tmp_path, TRAIN_LINE)) == 9


def test_only_the_main_worker_writes(tmp_path, capsys):
    config = toy_experiment()
    task = ToyTask(config.task)
    workers = WorkerGroup(rank=1)  # of a world of one, so that it exchanges nothing: writes as another worker would
    log = TextLog(to_terminal=True)
    fit(config, task, ToyStream(21, 4, task), None, run_dir=tmp_path, workers=workers, callbacks=[log])
    assert not (tmp_path / "log.txt").exists()
    assert capsys.readouterr().out == ""


def test_a_line_holds_a_bounded_number_of_values_and_the_loss_first():
    metrics = {f"train/term_{i:02}": float(i) for i in range(20)} | {"train/loss": 190.0, "train/lr": 0.1}
    text = _values("train/", metrics)
    assert text.startswith("loss 190  term_00 0  term_01 1  ")
    assert text.endswith(f"  (+{21 - MAX_VALUES} in metrics.jsonl)")
    assert text.count("term_") == MAX_VALUES - 1
    assert "lr" not in text
