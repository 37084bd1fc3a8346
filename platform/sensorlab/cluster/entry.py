"""The command lines of ``experiments/train_*.py`` and ``experiments/tune_*.py``."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sensorlab.cluster.datasets import ensure_dataset
from sensorlab.cluster.program import EngineProgram
from sensorlab.cluster.start import Cluster, connect, disconnect, is_cluster_root, output_root
from sensorlab.cluster.sweep_config import check_space, load_sweep, split_overrides
from sensorlab.cluster.trainer import trains_in_process
from sensorlab.config import apply_overrides, as_dict, load_yaml
from sensorlab.errors import UserError, exit_on_user_error
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.store import default_store_uri


def tune_main(argv: Sequence[str] | None, script: Path, default_config: Path, description: str) -> int:
    """Run a sweep; the exit code is 0, 1 if a trial failed, 2 for a mistake of the user, 130 if interrupted.

    Args:
        argv: arguments; default: those of this process.
        script: the script that was started. Its grandparent is the repository: what is recorded as the run's code.
        default_config: experiment file when none is given.
        description: for ``--help``.
    """
    args = _parser(description, default_config, "SWEEP").parse_args(argv)
    return exit_on_user_error(lambda: _tune(args, script))


def train_main(argv: Sequence[str] | None, script: Path, default_config: Path, description: str) -> int:
    """Train once; the exit code is 0, 2 for a mistake of the user, 130 if interrupted. Arguments as above."""
    args = _parser(description, default_config, "RUN_DIR").parse_args(argv)
    return exit_on_user_error(lambda: _train(args, script))


def _parser(description: str, default_config: Path, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=default_config, help=f"experiment file (default: {default_config.name})"
    )
    parser.add_argument("--resume", metavar=what, help="name or directory of what to go on with, or 'latest'")
    parser.add_argument(
        "--address", help="Ray cluster to attach to (default: RAY_ADDRESS, else a local one is started)"
    )
    parser.add_argument("--output", metavar="DIR", help="output directory, instead of the experiment's output_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.lr=1e-3")
    return parser


def _tune(args: argparse.Namespace, script: Path) -> int:
    from sensorlab.cluster.sweep import SweepPlan, check_sweep, new_name, run_sweep, with_objective

    tree, sweep_tree, fixed = split_overrides(load_yaml(args.config), args.overrides)
    if args.resume:
        if args.overrides:
            raise UserError("--resume goes on with the sweep as it was started; overrides need a new sweep")
        plan = SweepPlan.load(_root(args, tree), args.resume)
    else:
        sweep = load_sweep(sweep_tree)
        experiment = with_objective(experiment_from(tree, where=str(args.config)), sweep)
        check_space(sweep, as_dict(experiment), experiment_from, fixed)
        root = output_root(args.output or experiment.output_dir)
        plan = SweepPlan(new_name(experiment), root, experiment, sweep, "", _store_uri(experiment, root))
    plan = dataclasses.replace(plan, **_started_by(args, script))
    cluster = _connect(args, plan.experiment, in_sweep=True)
    try:
        check_sweep(plan, cluster)
        plan = dataclasses.replace(plan, dataset=_dataset(plan.experiment, plan.root, plan.dataset))
        return run_sweep(plan, cluster, EngineProgram(), resume=bool(args.resume)).exit_code
    finally:
        disconnect()


def _train(args: argparse.Namespace, script: Path) -> int:
    from sensorlab.cluster.single import RunPlan, check_single, run_single
    from sensorlab.cluster.sweep import new_name

    for item in args.overrides:
        if item.partition("=")[0].partition(".")[0] == "sweep":
            raise UserError(f"{item}: {script.name} runs one experiment; sweep.* belongs to tune_bev.py")
    tree = apply_overrides(load_yaml(args.config), args.overrides)
    tree.pop("sweep", None)  # one file serves both scripts
    if args.resume:
        plan = RunPlan.load(_root(args, tree), args.resume)
        root = plan.run_dir.parent.parent
        # What may change on resume (workers, logging) may be given; the engine refuses the rest by name.
        changed = experiment_from(apply_overrides(as_dict(plan.experiment), args.overrides), where="resumed experiment")
        moved = changed.data.path != plan.experiment.data.path
        plan = dataclasses.replace(plan, experiment=changed, dataset="" if moved else plan.dataset)
    else:
        experiment = experiment_from(tree, where=str(args.config))
        root = output_root(args.output or experiment.output_dir)
        plan = RunPlan(root / "runs" / new_name(experiment), experiment, "", _store_uri(experiment, root))
    plan = dataclasses.replace(plan, **_started_by(args, script))
    cluster = _connect(args, plan.experiment, in_sweep=False)
    try:
        check_single(plan, cluster)
        plan = dataclasses.replace(plan, dataset=_dataset(plan.experiment, root, plan.dataset))
        run_single(plan, cluster, EngineProgram())
    except KeyboardInterrupt:
        return 130
    finally:
        disconnect()
    return 0


def _root(args: argparse.Namespace, tree: Mapping[str, Any]) -> Path:
    """Output root in which a name is looked up to go on with."""
    return output_root(args.output or str(tree.get("output_dir", "outputs")))


def _dataset(experiment: ExperimentConfig, root: Path, known: str) -> str:
    """Absolute path of the dataset; ``known``: where it was when what is resumed began, empty for what is new."""
    return str(ensure_dataset(experiment.data, root, _say, path=Path(known) if known else None).absolute())


def _started_by(args: argparse.Namespace, script: Path) -> dict[str, Any]:
    """What a plan says of the program: where its code is now, and how the user starts it."""
    path = script.resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    address = f" --address {shlex.quote(args.address)}" if args.address else ""
    return {"code_root": str(path.parents[1]), "command": f"python {shlex.quote(str(shown))}{address}"}


def _connect(args: argparse.Namespace, experiment: ExperimentConfig, in_sweep: bool) -> Cluster:
    worker_groups_in_trials = in_sweep and not trains_in_process(experiment.resources, in_sweep=True, local=False)
    cluster = connect(address=args.address, dashboard=worker_groups_in_trials)
    kind = "local Ray cluster" if cluster.local else "Ray cluster"
    _say(f"{kind} at {cluster.address}: {len(cluster.nodes)} node(s), {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs")
    return cluster


def _store_uri(experiment: ExperimentConfig, root: Path) -> str:
    """``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else ``mlruns.db``: beside the output directory on a laptop,
    inside the output root that a cluster sets."""
    return experiment.tracking.uri or default_store_uri(root if is_cluster_root() else root.parent)


def _say(line: str) -> None:
    print(line, flush=True)
