"""A recorded run, trained again."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import sensorlab
from sensorlab.cluster.commands import launch
from sensorlab.cluster.program import EngineProgram
from sensorlab.cluster.single import RunPlan, check_single, run_single
from sensorlab.cluster.start import output_root
from sensorlab.cluster.sweep import new_name
from sensorlab.engine.compare import read_series
from sensorlab.errors import UserError
from sensorlab.replay.checks import differences, present_environment
from sensorlab.replay.program import FirstSteps
from sensorlab.replay.record import RecordedRun
from sensorlab.replay.verdict import Verdict, check_weights, compared, judge
from sensorlab.runs.query import RunIndex
from sensorlab.runs.tags import PARENT_TAG, REPLAY_TAG, ROLE_TAG

FOLDER = "replays"


def replay_main(args: argparse.Namespace) -> int:
    """Repeat a run and print the verdict; exit code 0 if it is equal, 1 if it is different.

    Raises:
        UserError: the run cannot be repeated, or not as it was and ``--force`` is not given.
    """
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: at least 1")
    recorded = RecordedRun.of(RunIndex(args.store).find(args.id))
    expected = recorded.series()
    dataset = args.data or recorded.dataset_path
    found = differences(recorded, dataset, present_environment())
    if found and not args.force:
        reasons = "\n  ".join(found)
        raise UserError(
            f"run {recorded.run.run_id} cannot be repeated as it was (--force repeats it anyway):\n  {reasons}"
        )
    for line in found:
        launch.say(f"not the same: {line}")
    steps = steps_to_repeat(args.steps, expected, recorded)
    run_dir, run_id = _train(args, recorded, dataset, steps)
    tag = (recorded.run.tag("weights_sha256"), int(recorded.run.tag("latest_step") or -1))
    weights = check_weights(recorded.run_dir, tag if tag[0] else None, run_dir)
    left, right = compared(expected, recorded.spelled(read_series(run_dir)), steps)
    verdict = judge(left, right, weights, args.tolerance)
    _tell(recorded, verdict, run_id, run_dir, args.tolerance, found)
    return 0 if verdict.is_equal else 1


def steps_to_repeat(asked: int | None, expected: dict[tuple[int, str], float], recorded: RecordedRun) -> int | None:
    """Steps after which the repetition ends; ``None``: when its training ends.

    A run that was stopped (by a scheduler, for example) is repeated as far as it came.

    Raises:
        UserError: nothing was recorded of the steps that were asked for.
    """
    first, last = min(step for step, _ in expected), max(step for step, _ in expected)
    if asked is not None:
        if asked < first:
            raise UserError(f"--steps {asked}: the first numbers of the run are those of step {first}")
        return min(asked, last)
    return None if recorded.run.status == "FINISHED" else last


def _train(args: argparse.Namespace, recorded: RecordedRun, dataset: str, steps: int | None) -> tuple[Path, str]:
    """(directory, id) of the repetition: a run of its own below the one that it repeats."""
    config, run = recorded.experiment, recorded.run
    root = output_root(args.output) if args.output else recorded.output_root or output_root(config.output_dir)
    run_dir = root / FOLDER / new_name(config)
    plan = RunPlan(
        run_dir=run_dir,
        experiment=config,
        dataset=str(Path(dataset).expanduser().resolve()),
        tracking_uri=run.store.uri,
        code_root=str(Path(sensorlab.__file__).resolve().parents[2]),
    )
    tags = {ROLE_TAG: "replay", REPLAY_TAG: run.run_id, PARENT_TAG: run.run_id, "sensorlab.run_dir": str(run_dir)}
    try:
        cluster = launch.cluster_for(args, config)
        check_single(plan, cluster)  # what does not fit leaves no run behind
        entry = run.client.create_run(run.store.experiment_id, tags=tags, run_name=f"replay of {run.name}")
        plan = dataclasses.replace(plan, run_id=str(entry.info.run_id))
        run_single(plan, cluster, EngineProgram() if steps is None else FirstSteps(steps))
    finally:
        launch.leave()
    return run_dir, str(entry.info.run_id)


def _tell(
    recorded: RecordedRun, verdict: Verdict, run_id: str, run_dir: Path, tolerance: float, known: list[str]
) -> None:
    """Print the verdict, and leave it on the pages of both runs."""
    run = recorded.run
    within = f" {tolerance:g}" if verdict.kind.startswith("equal") else ""
    launch.say(f"\nreplay of {run.run_id} ({run.name}): {verdict.kind}{within}; {verdict.numbers}; {verdict.weights}")
    if verdict.difference:
        launch.say(f"first difference (first: recorded, second: repeated): {verdict.difference}")
    for line in known if not verdict.is_equal else []:
        launch.say(f"  what was not the same: {line}")
    run.client.set_tag(run_id, "sensorlab.replay_verdict", f"{verdict.kind}. {verdict.difference}".strip())
    run.client.set_tag(run.run_id, "sensorlab.replayed_by", f"{run_id}: {verdict.kind}")
    outcome = {"replay_of": run.run_id, "run_id": run_id, "directory": str(run_dir), **dataclasses.asdict(verdict)}
    launch.say(json.dumps(outcome))
