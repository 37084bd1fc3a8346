"""``sensorlab runs``: recorded runs in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``runs`` command group."""
    runs = subparsers.add_parser("runs", help="recorded runs: list, show, diff, best, promote, deliver")
    commands = runs.add_subparsers(required=True, metavar="COMMAND")
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", help="tracking URI (default: MLFLOW_TRACKING_URI, else mlruns.db in this directory)")
    _add_list(commands, store)
    _add_single(commands, store)
    _add_promote(commands, store)
    _add_deliver(commands, store)


def _add_list(commands: argparse._SubParsersAction, store: argparse.ArgumentParser) -> None:
    listing = commands.add_parser("list", parents=[store], help="runs, newest or best first")
    listing.add_argument("--experiment", help="of this experiment of the store")
    listing.add_argument("--sweep", help="trials of this sweep: its name, or its run's id")
    statuses = ("running", "finished", "failed", "killed")
    listing.add_argument("--status", choices=statuses, help="that stand or ended so")
    listing.add_argument("--sort", choices=("time", "objective"), default="time", help="default: time, newest first")
    listing.add_argument("--limit", type=int, default=20, help="at most so many (default: 20)")
    listing.set_defaults(run=run_list)


def _add_single(commands: argparse._SubParsersAction, store: argparse.ArgumentParser) -> None:
    id_help = "its id or an unambiguous begin of it, or its name"
    show = commands.add_parser(
        "show", parents=[store], help="one run: origin, protocol, metrics, checkpoints, attempts"
    )
    show.add_argument("id", metavar="RUN", help=id_help)
    show.set_defaults(run=run_show)
    diff = commands.add_parser("diff", parents=[store], help="what two runs differ in, and whether they compare")
    diff.add_argument("first", metavar="A", help=id_help)
    diff.add_argument("second", metavar="B")
    diff.set_defaults(run=run_diff)
    best = commands.add_parser("best", parents=[store], help="the best checkpoint and the commands that use it")
    best.add_argument("sweep", nargs="?", metavar="SWEEP", help="a sweep (or run); default: the latest sweep")
    best.set_defaults(run=run_best)


def _add_promote(commands: argparse._SubParsersAction, store: argparse.ArgumentParser) -> None:
    promote = commands.add_parser("promote", parents=[store], help="give a run's best model a name in the registry")
    promote.add_argument("id", metavar="RUN")
    promote.add_argument("--as", dest="target", metavar="NAME@ALIAS", required=True, help="for example bev@champion")
    promote.set_defaults(run=run_promote)


def _add_deliver(commands: argparse._SubParsersAction, store: argparse.ArgumentParser) -> None:
    deliver = commands.add_parser(
        "deliver",
        parents=[store],
        help="deliver what was recorded while the tracking store was away",
        description="Deliver the spool of runs that ended while the tracking store was away.",
    )
    spool_help = "spool folder, as the warning at the run's end named it, or the directory of a run or a sweep"
    deliver.add_argument("spool", type=Path, help=spool_help)
    deliver.add_argument("--deadline", type=float, default=60.0, help="seconds per run (default: 60)")
    deliver.set_defaults(run=run_deliver)


def run_list(args: argparse.Namespace) -> int:
    from sensorlab.errors import UserError
    from sensorlab.runs.query import RunIndex
    from sensorlab.runs.show import in_order, run_table

    if args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1")
    index = RunIndex(args.store)
    sweep = index.find(args.sweep, role="sweep") if args.sweep else None
    found = in_order(index.runs(args.experiment, sweep, args.status), args.sort)
    if not found:
        print("no runs")
        return 0
    print(run_table(found[: args.limit]))
    if len(found) > args.limit:
        print(f"\n{len(found) - args.limit} more: --limit {len(found)}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    from sensorlab.runs.query import RunIndex
    from sensorlab.runs.show import run_details

    print(run_details(RunIndex(args.store).find(args.id)))
    return 0


def run_diff(args: argparse.Namespace) -> int:
    from sensorlab.runs import diff
    from sensorlab.runs.query import RunIndex

    index = RunIndex(args.store)
    print(diff.run_diff(index.find(args.first), index.find(args.second)))
    return 0


def run_best(args: argparse.Namespace) -> int:
    from sensorlab.runs.query import RunIndex
    from sensorlab.runs.show import best_checkpoint, best_of

    index = RunIndex(args.store)
    print(best_checkpoint(best_of(index, args.sweep)))
    return 0


def run_promote(args: argparse.Namespace) -> int:
    """Register a run's model under a name and let an alias point to it.

    A run that was stopped has logged no model; then its best checkpoint becomes one, if it is on this machine.
    """
    import tempfile

    from sensorlab.engine.callbacks.best_model import export_model
    from sensorlab.errors import UserError
    from sensorlab.runs.models import deliver_model, logged_models, promote
    from sensorlab.runs.query import RunIndex

    name, _, alias = args.target.partition("@")
    if not name or not alias:
        raise UserError(f"--as {args.target}: expected NAME@ALIAS, for example bev@champion")
    index = RunIndex(args.store)
    run = index.find(args.id)
    checkpoint = Path(run.tag("best_checkpoint") or "/nowhere")
    if not logged_models(index.client, run.store.experiment_id, run.run_id) and checkpoint.is_dir():
        with tempfile.TemporaryDirectory(prefix="sensorlab-") as folder:
            export_model(checkpoint, Path(folder) / "model")
            deliver_model(index.client, run.run_id, name, Path(folder) / "model")
    version = promote(index.client, run.store.experiment_id, run.run_id, name, alias)
    print(f"models:/{name}@{alias} is version {version.version}: the best model of run {run.run_id} ({run.name})")
    return 0


def run_deliver(args: argparse.Namespace) -> int:
    """Deliver what waits in a folder; exit code 1 if something could not be delivered."""
    import os

    from sensorlab.errors import UserError
    from sensorlab.runs.recorder import deliver_spool

    if not args.spool.is_dir():
        raise UserError(f"spool folder {args.spool} does not exist")
    uri = args.store or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError("name the tracking store: --store sqlite:///.../mlruns.db, or set MLFLOW_TRACKING_URI")
    delivered = deliver_spool(uri, args.spool, args.deadline)
    for run_id, done in delivered.items():
        print(f"{run_id}: {'delivered' if done else 'NOT delivered, kept'}")
    if not delivered:
        print(f"{args.spool}: nothing to deliver")
    return 0 if all(delivered.values()) else 1
