"""Resuming a channels-last network: a checkpoint keeps values, and no memory layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callback_runs import Interrupted, StopAfter
from run_states import assert_equal, final_state
from torch import nn

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.callbacks.json_log import JsonLog
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import OptimConfig, restore_optimizer
from sensorlab.experiment import ExperimentConfig, TrainConfig
from toy import ToyStream, ToyTask, toy_experiment


class ConvTask(ToyTask):
    """The toy numbers as 2 x 2 pictures of 4 equal channels, so that channels-last weights differ in layout."""

    def build_model(self) -> nn.Module:
        body = nn.Sequential(nn.Conv2d(4, 6, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
        return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), _Repeat(), body, nn.Flatten(), nn.Linear(4, 1))


class _Repeat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, 4, -1, -1)


def experiment(optim: str) -> ExperimentConfig:
    train = TrainConfig(duration="2 epochs", log_every="1 step", channels_last=True, ema=EmaConfig(tau=3.0))
    return toy_experiment(
        train=train,
        optim=OptimConfig(name=optim, lr=1e-2, momentum=0.9),
        eval={"metric": "val/mse", "mode": "min"},
        checkpoint={"every": "1 step"},
    )


def run(config: ExperimentConfig, run_dir: Path, *callbacks: Callback) -> None:
    task = ConvTask(config.task)
    train, val = ToyStream(20, 4, task), ToyStream(6, 4, task, training=False)
    fit(config, task, train, val, run_dir=run_dir, callbacks=[JsonLog(), *callbacks])


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw"])
def test_a_channels_last_run_resumes_bit_for_bit(tmp_path, optim):
    run(experiment(optim), tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(experiment(optim), tmp_path / "resumed", StopAfter(4))
    run(experiment(optim), tmp_path / "resumed")
    assert_equal(final_state(tmp_path / "resumed"), final_state(tmp_path / "straight"))


def test_restored_moments_have_the_layout_of_their_parameters():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(conv.parameters(), fused=True)
    conv(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    moments = state["state"][0]["exp_avg"].clone()
    state["state"] = {
        index: {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    restore_optimizer(optimizer, state)
    restored = optimizer.state[conv.weight]["exp_avg"]
    assert restored.stride() == conv.weight.stride()
    assert torch.equal(restored, moments)
    assert optimizer.state[conv.weight]["step"].shape == ()
