"""``sensorlab bench NAME``: run one benchmark and print its figures.

A benchmark is a module of this package with ``add_arguments(parser)`` and ``run(args) -> dict``. It measures both
sides of every ratio in one call on the same data.
"""

from __future__ import annotations

import argparse
import importlib
import json

BENCHMARKS = ("detection_metrics", "lift", "loader", "loop", "resume", "stream", "sweep", "tracking")


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="measure one part of the platform", add_help=False)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS)
    parser.add_argument("--list", action="store_true")
    # A benchmark parses its own arguments, so that its module, and torch with it, is imported only when asked for.
    parser.set_defaults(run=_run, takes_rest=True)


def _run(args: argparse.Namespace) -> int:
    if args.list:
        print("\n".join(BENCHMARKS))
        return 0
    if args.name is None:
        print(f"usage: sensorlab bench {{{','.join(BENCHMARKS)}}} [--json] [--help]\n       sensorlab bench --list")
        return 0 if "--help" in args.rest or "-h" in args.rest else 2
    module = importlib.import_module(f"sensorlab.bench.{args.name}")
    parser = argparse.ArgumentParser(prog=f"sensorlab bench {args.name}", description=module.__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    module.add_arguments(parser)
    options = parser.parse_args(args.rest)
    print(json.dumps(module.run(options), indent=None if options.json else 2))
    return 0
