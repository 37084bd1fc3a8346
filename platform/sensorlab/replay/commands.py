"""``sensorlab replay``: train a recorded run again and say whether the same came of it."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``replay`` command."""
    parser = subparsers.add_parser(
        "replay",
        help="train a recorded run again and compare",
        description="Train a recorded run again, in a new directory, and compare every loss, metric and weight. Exit "
        "code: 0 equal, 1 different, 2 refused because data, code or machine are not the same.",
    )
    parser.add_argument("id", metavar="RUN", help="its id or an unambiguous begin of it, or its name")
    parser.add_argument("--store", help="tracking URI (default: MLFLOW_TRACKING_URI, else mlruns.db in this directory)")
    parser.add_argument("--steps", type=int, metavar="N", help="repeat the first N optimiser steps only")
    parser.add_argument("--force", action="store_true", help="repeat it although something is not the same")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="absolute up to 1, relative above (default: 1e-5); 0: equal bits"
    )
    parser.add_argument("--data", metavar="PATH", help="where the prepared dataset is now")
    parser.add_argument("--output", metavar="DIR", help="output directory (default: that of the run)")
    parser.add_argument(
        "--address", help="Ray cluster to attach to (default: RAY_ADDRESS, else a local one is started)"
    )
    parser.set_defaults(run=run_replay)


def run_replay(args: argparse.Namespace) -> int:
    from sensorlab.replay.repeat import replay_main

    return replay_main(args)
