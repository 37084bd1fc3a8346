"""``--find-lr``: the learning-rate range test of an experiment, as a job on its workers."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sensorlab.cluster.commands import launch
from sensorlab.cluster.program import TRAIN, EngineProgram, build_task, open_streams
from sensorlab.cluster.sweep import new_name
from sensorlab.cluster.worker import RunContext, RunSpec
from sensorlab.engine.lr_finder import PICTURE, REPORT, LrFinder, RateRange, range_test, write_report
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig


@dataclass(frozen=True)
class RangeTest:
    """Trains through the test and leaves its curve in the run's directory; no checkpoint stays."""

    rates: RateRange

    def datasets(self, spec: RunSpec) -> dict[str, Callable[[], Any]]:
        return EngineProgram().datasets(spec)

    def train(self, context: RunContext) -> Mapping[str, Any]:
        from sensorlab.engine.callbacks.json_log import JsonLog
        from sensorlab.engine.fit import fit

        config = context.config
        task = build_task(config)
        streams = open_streams(context, task)
        finder = LrFinder()
        try:
            result = fit(
                config,
                task,
                streams[TRAIN],
                None,
                run_dir=context.run_dir,
                workers=context.workers,
                callbacks=[*context.callbacks, JsonLog(), finder],
                resume=False,
            )
        finally:
            for stream in streams.values():
                stream.close()
        if not context.workers.is_main:
            return {}
        shutil.rmtree(context.run_dir / "checkpoints", ignore_errors=True)  # weights that nobody should go on from
        return write_report(finder, self.rates, result.config_digest, context.run_dir)


def find_lr(args: argparse.Namespace, experiment: ExperimentConfig) -> int:
    """Run the test and print what it suggests.

    Raises:
        UserError: wrong range, the experiment does not fit on the cluster, or the loss is not finite from the start.
    """
    low, high = args.lr_range or (RateRange.low, RateRange.high)
    rates = RateRange(low, high, RateRange.steps if args.lr_steps is None else args.lr_steps)
    config = range_test(experiment, rates)
    root = launch.root_of(args, {"output_dir": config.output_dir})
    cluster = launch.cluster_for(args, config)
    dataset = launch.dataset_for(config, root)
    run_dir = root / "lr_finder" / new_name(config)
    launch.say(f"range test {rates.low:g} ... {rates.high:g} in {rates.steps} steps; files in {run_dir}")
    report = launch.work(config, cluster, RangeTest(rates), run_dir=run_dir, dataset=dataset)
    found = report["suggestion"]
    if report["stopped"]:
        launch.say(f"ended after {report['steps']} steps: {report['stopped']}")
    if found is None:
        raise UserError(
            f"the loss never fell between {rates.low:g} and {report['lr'][-1]:.3g}: look at {run_dir / PICTURE}; "
            "give other bounds (--lr-range) or more steps (--lr-steps)"
        )
    if found["minimum"] == report["lr"][-1]:
        launch.say("the loss was still falling at the highest rate: a tenth of it is a guess; raise it (--lr-range)")
    launch.say(
        f"\nsteepest descent of the loss  optim.lr={found['steepest']:.2g}\n"
        f"a tenth of its minimum        optim.lr={found['minimum_tenth']:.2g}\n"
        f"\ncurve: {run_dir / PICTURE}\nnumbers: {run_dir / REPORT}"
    )
    outcome = {"directory": str(run_dir), "suggestion": found, "steps": report["steps"], "stopped": report["stopped"]}
    launch.say(json.dumps(outcome))
    return 0
