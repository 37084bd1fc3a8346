"""The command lines of ``experiments/train_*.py`` and ``experiments/tune_*.py``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sensorlab.cluster.commands import launch
from sensorlab.cluster.program import EngineProgram, least_object_store
from sensorlab.cluster.start import output_root
from sensorlab.cluster.sweep_check import check_objective, check_on_dataset, check_space
from sensorlab.cluster.sweep_config import MAY_CHANGE, load_sweep, split_overrides, with_more
from sensorlab.config import apply_overrides, as_dict
from sensorlab.errors import UserError, exit_on_user_error
from sensorlab.experiment import ExperimentConfig, experiment_from, load_file


def tune_main(argv: Sequence[str] | None, script: Path, default_config: Path, description: str) -> int:
    """Run a sweep; the exit code is 0, 1 if a trial failed, 2 for a mistake of the user, 130 if interrupted.

    Args:
        argv: arguments; default: those of this process.
        script: the script that was started. Its grandparent is the repository: what is recorded as the run's code.
        default_config: experiment file when none is given.
        description: for ``--help``.
    """
    parser = _parser(description, default_config)
    parser.add_argument(
        "--resume",
        metavar="SWEEP",
        help="go on with a sweep: its name or directory, or 'latest'; " + ", ".join(MAY_CHANGE) + " may be raised",
    )
    args = parser.parse_args(argv)
    return exit_on_user_error(lambda: _tune(args, script))


def train_main(argv: Sequence[str] | None, script: Path, default_config: Path, description: str) -> int:
    """Train once, or do one of the checks around a training. Arguments as above.

    The exit code is 0, 1 if ``--overfit`` failed, 2 for a mistake of the user, 130 if interrupted.
    """
    args = _train_parser(description, default_config).parse_args(argv)
    return exit_on_user_error(lambda: _train(args, script))


def _parser(description: str, default_config: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=default_config, help=f"experiment file (default: {default_config.name})"
    )
    parser.add_argument(
        "--debug", action="store_true", help="make the experiment small as its 'debug' section says, and record nothing"
    )
    parser.add_argument(
        "--address", help="Ray cluster to attach to (default: RAY_ADDRESS, else a local one is started)"
    )
    parser.add_argument("--output", metavar="DIR", help="output directory, instead of the experiment's output_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.lr=1e-3")
    return parser


def _train_parser(description: str, default_config: Path) -> argparse.ArgumentParser:
    parser = _parser(description, default_config)
    group = parser.add_argument_group("instead of a new training (one of these)")
    instead = group.add_mutually_exclusive_group()
    instead.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run: its name or directory, or 'latest'; train.extend.duration='5 epochs' makes it longer",
    )
    instead.add_argument(
        "--validate",
        metavar="WHAT",
        help="print the metrics, without training, of a run (name, directory or 'latest'), of a checkpoint's "
        "directory, or of a weights file for the experiment of --config",
    )
    instead.add_argument(
        "--overfit",
        metavar="N",
        type=_positive,
        help="train on the first N samples alone, without augmentation, 200 steps unless train.duration is given; "
        "exit code 1 if the loss does not fall",
    )
    instead.add_argument(
        "--find-lr", action="store_true", help="learning-rate range test: a curve, and the rates that it suggests"
    )
    more = parser.add_argument_group("options of these")
    more.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="of --validate RUN: 'best' (default), 'latest', or a checkpoint's directory",
    )
    more.add_argument(
        "--below",
        metavar="SHARE",
        type=float,
        help="of --overfit: share of the first epoch's loss that the last must be below (default: 0.5)",
    )
    more.add_argument("--lr-range", metavar=("LOW", "HIGH"), type=float, nargs=2, help="of --find-lr (default: 1e-7 1)")
    more.add_argument("--lr-steps", metavar="N", type=int, help="of --find-lr (default: 100)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _tune(args: argparse.Namespace, script: Path) -> int:
    from sensorlab.cluster.sweep import SweepPlan, check_sweep, new_name, run_sweep, with_objective

    if args.resume:
        if args.debug:
            raise UserError("--debug is for a new sweep; --resume goes on with a sweep as it was started")
        plan = SweepPlan.load(launch.root_of(args, load_file(args.config)), args.resume)
        plan = dataclasses.replace(plan, sweep=with_more(plan.sweep, args.overrides))
    else:
        tree, sweep_tree, fixed = split_overrides(load_file(args.config, args.debug), args.overrides)
        sweep = load_sweep(sweep_tree)
        experiment = launch.with_absolute_paths(experiment_from(tree, where=str(args.config)))
        experiment = with_objective(experiment, sweep)
        check_space(sweep, as_dict(experiment), experiment_from, fixed)
        check_objective(sweep, experiment)
        root = output_root(args.output or experiment.output_dir)
        plan = SweepPlan(new_name(experiment), root, experiment, sweep, "", launch.store_uri(args, experiment, root))
    plan = dataclasses.replace(plan, **launch.started_by(args, script))
    cluster = launch.cluster_for(args, plan.experiment, in_sweep=True)
    try:
        check_sweep(plan, cluster)
        plan = dataclasses.replace(plan, dataset=launch.dataset_for(plan.experiment, plan.root, plan.dataset))
        check_on_dataset(plan.sweep, as_dict(plan.experiment), plan.dataset)
        needed = least_object_store(plan.experiment, plan.dataset)
        return run_sweep(plan, cluster, EngineProgram(), resume=bool(args.resume), object_store=needed).exit_code
    finally:
        launch.leave()


def _train(args: argparse.Namespace, script: Path) -> int:
    _refuse_options(args)
    for item in args.overrides:
        if item.partition("=")[0].partition(".")[0] == "sweep":
            raise UserError(f"{item}: {script.name} runs one experiment; sweep.* belongs to tune_bev.py")
    tree = load_file(args.config, args.debug)
    tree.pop("sweep", None)  # one file serves both scripts
    try:
        if args.validate:
            return _validate(args, tree, script)
        if args.resume:
            return _run(args, script, _resumed(args, apply_overrides(tree, args.overrides)))
        experiment = experiment_from(apply_overrides(tree, args.overrides), where=str(args.config))
        experiment = launch.with_absolute_paths(experiment)
        if args.overfit:
            from sensorlab.cluster.commands.overfit import overfit

            return overfit(args, experiment, script)
        if args.find_lr:
            from sensorlab.cluster.commands.find_lr import find_lr

            return find_lr(args, experiment)
        return _run(args, script, _new(args, experiment))
    finally:
        launch.leave()


def _refuse_options(args: argparse.Namespace) -> None:
    """An option without effect is a mistake."""
    for option, given, command, is_on in (
        ("--checkpoint", args.checkpoint, "--validate", args.validate),
        ("--below", args.below, "--overfit", args.overfit),
        ("--lr-range", args.lr_range, "--find-lr", args.find_lr),
        ("--lr-steps", args.lr_steps, "--find-lr", args.find_lr),
    ):
        if given is not None and not is_on:
            raise UserError(f"{option} is an option of {command}")
    if args.debug and args.resume:
        raise UserError("--debug is for a new run; --resume goes on with a run as it was started")
    if args.below is not None and not 0 < args.below < 1:
        raise UserError(f"--below {args.below:g}: expected a share between 0 and 1")


def _validate(args: argparse.Namespace, tree: dict[str, Any], script: Path) -> int:
    from sensorlab.cluster.commands.validation import validate_main

    return validate_main(args, tree, str(args.config), str(script.resolve().parents[1]))


def _resumed(args: argparse.Namespace, tree: dict[str, Any]) -> tuple[Any, Path]:
    """(plan, output root) of a run to go on with."""
    from sensorlab.cluster.single import RunPlan

    plan = RunPlan.load(launch.root_of(args, tree), args.resume)
    # What may change on resume (workers, logging) may be given; the engine refuses the rest by name.
    changed = experiment_from(apply_overrides(as_dict(plan.experiment), args.overrides), where="resumed experiment")
    moved = changed.data.path != plan.experiment.data.path
    return dataclasses.replace(plan, experiment=changed, dataset="" if moved else plan.dataset), plan.run_dir.parents[1]


def _new(args: argparse.Namespace, experiment: ExperimentConfig) -> tuple[Any, Path]:
    """(plan, output root) of a new run."""
    from sensorlab.cluster.single import RunPlan
    from sensorlab.cluster.sweep import new_name

    root = output_root(args.output or experiment.output_dir)
    uri = launch.store_uri(args, experiment, root)
    return RunPlan(root / "runs" / new_name(experiment), experiment, "", uri), root


def _run(args: argparse.Namespace, script: Path, planned: tuple[Any, Path]) -> int:
    from sensorlab.cluster.single import check_single, run_single

    plan, root = planned
    plan = dataclasses.replace(plan, **launch.started_by(args, script))
    cluster = launch.cluster_for(args, plan.experiment)
    check_single(plan, cluster)
    plan = dataclasses.replace(plan, dataset=launch.dataset_for(plan.experiment, root, plan.dataset))
    run_single(plan, cluster, EngineProgram())
    return 0
