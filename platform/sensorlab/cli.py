"""The ``sensorlab`` command: data, runs, benchmarks, self-tests and the configuration reference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sensorlab import __version__
from sensorlab.errors import exit_on_user_error


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, a function of the parsed arguments."""
    from sensorlab import config_reference
    from sensorlab.bench import commands as bench
    from sensorlab.data import commands as data
    from sensorlab.engine import commands as engine
    from sensorlab.replay import commands as replay
    from sensorlab.report import commands as report
    from sensorlab.runs import commands as runs
    from sensorlab.selftest import commands as selftest

    parser = argparse.ArgumentParser(prog="sensorlab", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sensorlab {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.register(subparsers)
    runs.register(subparsers)
    replay.register(subparsers)
    report.register(subparsers)
    engine.register(subparsers)
    bench.register(subparsers)
    selftest.register(subparsers)
    config_reference.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for findings, 2 for a mistake of the user."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_rest", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    return exit_on_user_error(lambda: args.run(args))


if __name__ == "__main__":
    raise SystemExit(main())
