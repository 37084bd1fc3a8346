"""``--overfit N``: whether the model, its losses and the optimiser can learn N samples by heart.

If they cannot, no amount of data helps: targets are wrong, a gradient is cut, the rate is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from sensorlab.cluster.commands import launch
from sensorlab.cluster.program import EngineProgram
from sensorlab.cluster.single import RunPlan, check_single, run_single
from sensorlab.cluster.sweep import new_name
from sensorlab.config import as_dict, merge
from sensorlab.data.dataset import PreparedDataset
from sensorlab.engine.compare import read_series
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from

STEPS = 200  # unless the command line sets train.duration
SHARE = 0.5  # of the loss of the first epoch


def overfit_experiment(experiment: ExperimentConfig, samples: int, duration: str | None) -> ExperimentConfig:
    """``experiment`` on its first ``samples`` training samples, which it is validated on too.

    Samples are transformed as in evaluation and come once per epoch, so that each is the same in every epoch; what a
    network draws itself (dropout, mirroring) stays. Rates follow one cycle over the short training: schedules in epochs
    would be over after a few steps. Off are: accumulation, multi-scale, the average of the weights, early stopping, and
    evaluations and checkpoints before the end. Everything else is the experiment's: task, optimiser, clipping,
    precision, initial weights and what is frozen, in epochs of the few samples.

    Args:
        duration: ``train.duration``; ``None``: 200 steps.
    """
    batch = min(experiment.data.global_batch, samples)
    update: dict[str, Any] = {
        "name": f"{experiment.name[:72]}_overfit",
        "data": {
            "max_samples": samples,
            "train_fraction": 1.0,
            "augment": False,
            "val_split": experiment.data.train_split,
            "global_batch": batch,
            "val_batch": None,
            "last_batch": "pad" if samples % batch else "drop",
            "sampling": {"name": "shuffled", "aspect_groups": False},
            "max_batches": None,
        },
        "schedule": {"name": "one_cycle", "extra_steps": 0},
        "warmup": None,
        "train": {
            "duration": duration or f"{STEPS} steps",
            "extend": None,
            "until": None,
            "fork": None,
            "accumulate": {"passes": 1, "nominal_batch": None, "ramp": False, "window": "epoch"},
            "multi_scale": None,
            "early_stop": None,
            "ema": None,
            "log_every": "1 epoch",  # one mean over all of the samples
        },
        "eval": {"every": None, "max_batches": None},
        "checkpoint": {"every": None, "keep_every": None, "keep_latest": 1},
    }
    tree = as_dict(experiment)
    for section in ("data", "train"):  # a schema without one of these keys has nothing to turn off
        update[section] = {key: value for key, value in update[section].items() if key in tree[section]}
    return experiment_from(merge(tree, update), where="--overfit")


def overfit(args: argparse.Namespace, experiment: ExperimentConfig, script: Path) -> int:
    """Train and judge; the exit code is 0 if the loss fell far enough, else 1.

    Raises:
        UserError: the split has fewer samples, or the experiment does not fit on the cluster.
    """
    given = any(item.partition("=")[0] == "train.duration" for item in args.overrides)
    config = overfit_experiment(experiment, args.overfit, str(experiment.train.duration) if given else None)
    root = launch.root_of(args, {"output_dir": config.output_dir})
    plan = RunPlan(root / "runs" / new_name(config), config, "", None)
    plan = dataclasses.replace(plan, **launch.started_by(args, script))
    cluster = launch.cluster_for(args, config)
    check_single(plan, cluster)
    plan = dataclasses.replace(plan, dataset=launch.dataset_for(config, root))
    _check_size(plan)
    run_single(plan, cluster, EngineProgram())
    verdict = judge(plan.run_dir, SHARE if args.below is None else args.below)
    launch.say(
        f"\noverfitting {args.overfit} samples: mean loss {verdict['first']:.4g} in the first epoch, "
        f"{verdict['last']:.4g} in the last: {verdict['share']:.1%} of its start "
        f"({'passed' if verdict['passed'] else 'FAILED'}: below {verdict['below']:.1%} is asked for)"
    )
    launch.say(json.dumps({"run": plan.run_dir.name, "overfit": verdict}))
    return 0 if verdict["passed"] else 1


def _check_size(plan: RunPlan) -> None:
    data = plan.experiment.data
    available = PreparedDataset.open(plan.dataset).split(data.train_split).num_samples
    if data.max_samples is not None and data.max_samples > available:
        raise UserError(f"--overfit {data.max_samples}: split {data.train_split!r} has {available} samples")


def judge(run_dir: Path, below: float) -> dict[str, Any]:
    """Compare the mean losses of the first and the last epoch in ``metrics.jsonl``: both are of the same samples.

    Raises:
        UserError: a single epoch, or a loss that is not positive at the start, has no share.
    """
    series = read_series(run_dir)
    losses = [series[key] for key in sorted(series) if key[1] == "train/loss"]
    if len(losses) < 2:
        raise UserError("the training has a single epoch: nothing to compare; give a longer train.duration")
    first, last = losses[0], losses[-1]
    if first <= 0:
        raise UserError(f"the loss is {first:.4g} at the start: a share of it says nothing; judge by {run_dir}")
    return {"first": first, "last": last, "share": last / first, "below": below, "passed": last < below * first}
