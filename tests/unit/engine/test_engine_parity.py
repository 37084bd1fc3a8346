"""The engine against a bare torch loop of sixty lines that shares none of its code: equal weights, bit for bit."""

from __future__ import annotations

import copy
import hashlib
import math

import pytest
import torch
from run_states import assert_equal
from torch import nn

from sensorlab.engine import checkpoint
from sensorlab.engine.ema import EmaConfig
from sensorlab.engine.fit import fit
from sensorlab.engine.optim import ClipConfig, OptimConfig
from sensorlab.experiment import DataConfig, EvalConfig, TrainConfig
from toy import ToyConfig, ToyStream, ToyTask, toy_experiment

STEPS, BATCH, SAMPLES, SEED = 50, 4, 45, 7  # 11 whole batches an epoch: 6 steps of 2 passes, the last of one
LR, BETAS, EPS, DECAY, CLIP, EMA_DECAY, EMA_TAU = 3e-2, (0.9, 0.999), 1e-8, 0.01, 1.0, 0.99, 20.0


def seed_of_step(start: int, step: int) -> int:
    """The documented rule of a step: its element of splitmix64's sequence from there, 63 bits."""
    z = (start + step + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


def seed_of(*key: str | int) -> int:
    """The documented rule of the seeds: BLAKE2b of the typed parts, 63 bits."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def one_cycle(step: int) -> float:
    """Linear rise over 5 % and fall, 100 steps longer than the run, as Simple-BEV sets torch's OneCycleLR."""
    length = STEPS + 100
    peak, start, end = 0.05 * length - 1, 1 / 25, 1 / 25 / 1e4
    if step <= peak:
        return start + (1 - start) * (step / peak)
    return 1 + (end - 1) * ((step - peak) / (length - 1 - peak))


def bare_loop(task: ToyTask) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed_of(SEED, "weights"))
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
    stream = ToyStream(SAMPLES, BATCH, task, seed=SEED)
    step = epoch = 0
    while step < STEPS:
        batches = list(stream.batches(epoch))
        for first in range(0, len(batches), 2):
            if step == STEPS:
                break
            torch.manual_seed(seed_of_step(seed_of(SEED, "step", 0), step))
            for group in optimizer.param_groups:
                group["lr"] = LR * one_cycle(step)
            passes = batches[first : first + 2]
            for batch in passes:
                error = model(batch["x"]) - batch["y"]
                loss = error.square().mean() + 0.1 * error.abs().mean()
                (loss / len(passes)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            decay = EMA_DECAY * (1 - math.exp(-step / EMA_TAU))
            with torch.no_grad():
                for name, value in average.state_dict().items():
                    new = model.state_dict()[name]
                    value.lerp_(new, 1 - decay) if value.is_floating_point() else value.copy_(new)
        epoch += 1
    return {"model": model.state_dict(), "ema": average.state_dict()}


@pytest.mark.parametrize("resumed", [False, True])
def test_fifty_steps_equal_a_bare_loop(tmp_path, resumed):
    config = toy_experiment(
        seed=SEED,
        task=ToyConfig(),
        data=DataConfig(path="nowhere", global_batch=BATCH),
        optim=OptimConfig(name="adamw", lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY),
        train=TrainConfig.model_validate(
            {
                "duration": f"{STEPS} steps",
                "accumulate": 2,
                "clip": ClipConfig(value=CLIP),
                "ema": EmaConfig(kind="warmup", decay=EMA_DECAY, tau=EMA_TAU),
            }
        ),
        eval=EvalConfig(metric="val/mse", mode="min"),
    )
    task = ToyTask(config.task)
    for _ in range(2 if resumed else 1):  # the second call finds the run finished and must leave it as it is
        fit(
            config,
            task,
            ToyStream(SAMPLES, BATCH, task, seed=SEED),
            ToyStream(9, BATCH, task, training=False),
            run_dir=tmp_path,
        )
    latest = checkpoint.CheckpointStore(tmp_path / "checkpoints").latest()
    state = checkpoint.load(latest.path)
    bare = bare_loop(task)
    assert latest.step == STEPS
    assert_equal(state["model"], dict(bare["model"]))
    assert_equal(state["ema"]["model"], dict(bare["ema"]))
