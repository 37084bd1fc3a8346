"""``sensorlab bench NAME``: run one benchmark and print its figures.

A benchmark is a module of this package with ``NAME``, ``add_arguments(parser)`` and ``run(args) -> dict``. It measures
both sides of every ratio in one call on the same data.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
from types import ModuleType
from typing import Any

import sensorlab.bench


def benchmark_names() -> list[str]:
    """The benchmarks that exist, by module name."""
    names = [info.name for info in pkgutil.iter_modules(sensorlab.bench.__path__)]
    return sorted(name for name in names if name != "commands" and not name.startswith("_"))


def benchmark(name: str) -> ModuleType:
    return importlib.import_module(f"sensorlab.bench.{name}")


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="measure one part of the platform")
    parser.add_argument("--list", action="store_true", help="print the names of the benchmarks")
    parser.set_defaults(run=_list)
    names = parser.add_subparsers(dest="benchmark", metavar="NAME")
    for name in benchmark_names():
        child = names.add_parser(name, help=(benchmark(name).__doc__ or "").partition("\n")[0])
        child.add_argument("--json", action="store_true", help="print JSON only")
        benchmark(name).add_arguments(child)
        child.set_defaults(run=_run)


def _list(args: argparse.Namespace) -> int:
    print("\n".join(benchmark_names()))
    return 0


def _run(args: argparse.Namespace) -> int:
    result: dict[str, Any] = benchmark(args.benchmark).run(args)
    print(json.dumps(result, indent=None if args.json else 2))
    return 0
