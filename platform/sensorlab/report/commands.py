"""``sensorlab report SWEEP --out report.html``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

_RUN_ID = re.compile(r"[0-9a-f]{32}")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``report`` command."""
    parser = subparsers.add_parser(
        "report",
        help="a sweep as one HTML file, for those who decide on a configuration",
        description="Write the report of a sweep: ranking with uncertainty, learning curves, importance of the "
        "searched keys, costs, pictures, differences, failures, protocols. The sweep may still run, or have been "
        "killed. The file loads nothing: it can be sent by mail.",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="directory or name of a sweep, 'latest', or its MLflow run id")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    parser.add_argument("--output", help="output root in which names are looked up (default: outputs)")
    parser.add_argument(
        "--store", help="tracking URI, for a run id (default: MLFLOW_TRACKING_URI, or OUTPUT/mlruns.db)"
    )
    parser.add_argument("--no-tracking", action="store_true", help="read the sweep's directory alone, not its store")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write the report; raises ``UserError`` if there is no such sweep."""
    from sensorlab.report.attach import write_report

    directory = find_sweep(args.sweep, args.output, args.store)
    path = write_report(directory, args.out, use_tracking=not args.no_tracking)
    print(f"report of {directory}: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


def find_sweep(name: str, output: str | None = None, store: str | None = None) -> Path:
    """Directory of a sweep: of a directory, a name under the output root, ``latest``, or the MLflow run id of a sweep.

    Raises:
        UserError: there is none; the latest names are listed.
    """
    from sensorlab.cluster.plans import SWEEP, load_plan
    from sensorlab.cluster.start import OUTPUT_ROOT_VARIABLE
    from sensorlab.report.recorded import sweep_directory
    from sensorlab.runs.store import default_store_uri

    # As a sweep's own start has it, but nothing is created: a report may be made of what one may only read.
    root = Path(os.environ.get(OUTPUT_ROOT_VARIABLE) or output or "outputs").expanduser().absolute()
    if _RUN_ID.fullmatch(name) and not Path(name).exists():
        return sweep_directory(store or default_store_uri(root), name)
    directory, _ = load_plan(SWEEP, root, name)
    return directory
