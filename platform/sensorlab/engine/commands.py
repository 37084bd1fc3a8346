"""Commands over the records of trainings."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compare-losses", help="the first step at which two runs differ")
    parser.add_argument("first", type=Path, help="a run's directory or its metrics.jsonl")
    parser.add_argument("second", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="absolute up to 1, relative above; default: exact")
    parser.add_argument("--losses", action="store_true", help="leave out metrics and gradient norms")
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Exit code 0: all numbers equal; 1: they differ, and where."""
    from sensorlab.engine.compare import first_difference, losses_of, read_series

    first, second = read_series(args.first), read_series(args.second)
    if args.losses:
        first, second = losses_of(first), losses_of(second)
    difference = first_difference(first, second, args.tolerance)
    print(difference or f"equal: {len(first)} numbers over {len({step for step, _ in first})} steps")
    return 1 if difference else 0
