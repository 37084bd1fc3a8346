"""What every command of the training scripts does before its work: find output root, cluster, dataset, store."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorlab.cluster.datasets import ensure_dataset
from sensorlab.cluster.preflight import capacity
from sensorlab.cluster.progress import RunLine, Ticker
from sensorlab.cluster.start import Cluster, connect, disconnect, is_cluster_root, output_root
from sensorlab.cluster.trainer import demand, fit_run, trains_in_process
from sensorlab.cluster.worker import Program, RunSpec, TrackingTarget, keep_report
from sensorlab.config import as_dict
from sensorlab.experiment import ExperimentConfig
from sensorlab.runs.store import default_store_uri


def root_of(args: argparse.Namespace, tree: Mapping[str, Any]) -> Path:
    """Output root of the experiment ``tree``; also where a name is looked up to go on with."""
    return output_root(args.output or str(tree.get("output_dir", "outputs")))


def dataset_for(experiment: ExperimentConfig, root: Path, known: str = "") -> str:
    """Absolute path of the dataset; ``known``: where it was when what is resumed began, empty for what is new."""
    return str(ensure_dataset(experiment.data, root, say, path=Path(known) if known else None).absolute())


def with_absolute_paths(experiment: ExperimentConfig) -> ExperimentConfig:
    """``experiment`` with absolute paths of what it begins with: workers may have another working directory."""
    train, changes = experiment.train, dict[str, Any]()
    if train.init is not None:
        changes["init"] = train.init.model_copy(update={"path": _absolute(train.init.path)})
    if train.fork is not None:
        changes["fork"] = train.fork.model_copy(update={"checkpoint": _absolute(train.fork.checkpoint)})
    return experiment.model_copy(update={"train": train.model_copy(update=changes)})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def started_by(args: argparse.Namespace, script: Path) -> dict[str, Any]:
    """What a plan says of the program: where its code is now, and how the user starts it."""
    path = script.resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    address = f" --address {shlex.quote(args.address)}" if args.address else ""
    return {"code_root": str(path.parents[1]), "command": f"python {shlex.quote(str(shown))}{address}"}


def cluster_for(args: argparse.Namespace, experiment: ExperimentConfig, in_sweep: bool = False) -> Cluster:
    """Attach to the cluster, or start a local one."""
    worker_groups_in_trials = in_sweep and not trains_in_process(experiment.resources, in_sweep=True, local=False)
    cluster = connect(address=args.address, dashboard=worker_groups_in_trials)
    kind = "local Ray cluster" if cluster.local else "Ray cluster"
    say(f"{kind} at {cluster.address}: {len(cluster.nodes)} node(s), {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs")
    return cluster


def leave() -> None:
    """Leave the cluster, if anything was started: a mistake that is found before must not load Ray first."""
    if "ray" in sys.modules:
        disconnect()


def store_uri(args: argparse.Namespace, experiment: ExperimentConfig, root: Path) -> str | None:
    """``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else ``mlruns.db``: beside the output directory on a laptop,
    inside the output root that a cluster sets. What is debugged is not recorded."""
    if args.debug:
        return None
    return experiment.tracking.uri or default_store_uri(root if is_cluster_root() else root.parent)


def work(
    experiment: ExperimentConfig,
    cluster: Cluster,
    program: Program,
    *,
    run_dir: Path,
    dataset: str,
    tracking: TrackingTarget | None = None,
) -> dict[str, Any]:
    """Run ``program`` on the workers of the experiment, once: what fails is not repeated. Returns what it returned.

    Raises:
        UserError: it does not fit on the cluster, or the program met a mistake of the user.
    """
    fitting = capacity(demand(experiment, in_sweep=False), cluster.nodes, limit=1)
    spec = RunSpec(
        experiment=as_dict(experiment),
        run_dir=str(run_dir),
        dataset=dataset,
        program=program,
        in_process=trains_in_process(experiment.resources, in_sweep=False, local=cluster.local),
        tracking=tracking,
        share=fitting.share,
    )
    with Ticker(RunLine(run_dir)):
        return fit_run(spec, name=run_dir.name, send=keep_report, max_failures=0)


def say(line: str) -> None:
    print(line, flush=True)
