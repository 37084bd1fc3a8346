"""``sensorlab bench NAME``: run one benchmark and print its figures.

A benchmark is a module of this package with ``add_arguments(parser)`` and ``run(args) -> dict``. It measures both
sides of every ratio in one call on the same data.
"""

from __future__ import annotations

import argparse
import importlib
import json

BENCHMARKS = ("lift", "loader", "stream", "sweep", "tracking")


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="measure one part of the platform", add_help=False)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    # Two stages, so that a benchmark's module, and torch with it, is imported only when it is asked for.
    parser = argparse.ArgumentParser(prog="sensorlab bench", description=__doc__, add_help=False)
    parser.add_argument("--list", action="store_true", help="print the names of the benchmarks")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS)
    known, rest = parser.parse_known_args(args.arguments)
    if known.list or known.name is None:
        if known.list:
            print("\n".join(BENCHMARKS))
        else:
            parser.print_help()
        return 0
    module = importlib.import_module(f"sensorlab.bench.{known.name}")
    own = argparse.ArgumentParser(prog=f"sensorlab bench {known.name}", description=module.__doc__)
    own.add_argument("--json", action="store_true", help="print one line of JSON")
    module.add_arguments(own)
    options = own.parse_args([*rest, "--help"] if known.help else rest)
    print(json.dumps(module.run(options), indent=None if options.json else 2))
    return 0
