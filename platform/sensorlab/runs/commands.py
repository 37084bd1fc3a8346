"""``sensorlab runs``: what the recording of runs needs by hand, seldom."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``runs`` command group."""
    runs = subparsers.add_parser("runs", help="recorded runs in the tracking store")
    commands = runs.add_subparsers(required=True, metavar="COMMAND")
    replay = commands.add_parser(
        "replay",
        help="deliver what was recorded while the tracking store was away",
        description="Deliver the spool of runs that ended while the tracking store was away.",
    )
    replay.add_argument("spool", type=Path, help="spool folder of the runs, as the warning at their end named it")
    replay.add_argument("--store", help="tracking URI (default: MLFLOW_TRACKING_URI)")
    replay.add_argument("--deadline", type=float, default=60.0, help="seconds per run (default: 60)")
    replay.set_defaults(run=run_replay)


def run_replay(args: argparse.Namespace) -> int:
    """Replay a spool folder; exit code 1 if something could not be delivered."""
    import os

    from sensorlab.errors import UserError
    from sensorlab.runs.recorder import replay_spool

    if not args.spool.is_dir():
        raise UserError(f"spool folder {args.spool} does not exist")
    uri = args.store or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError("name the tracking store: --store sqlite:///.../mlruns.db, or set MLFLOW_TRACKING_URI")
    delivered = replay_spool(uri, args.spool, args.deadline)
    for run_id, done in delivered.items():
        print(f"{run_id}: {'delivered' if done else 'NOT delivered, kept'}")
    if not delivered:
        print(f"{args.spool}: nothing to deliver")
    return 0 if all(delivered.values()) else 1
