"""``sensorlab selftest NAME``: proofs that anyone can run."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("selftest", help="prove a promise of the platform on this machine")
    tests = parser.add_subparsers(dest="selftest", required=True, metavar="NAME")
    resume = tests.add_parser("resume", help="a run killed at random moments ends with the bytes of a straight one")
    resume.add_argument("--kills", type=int, default=5, help="how often the run is killed")
    resume.add_argument("--seed", type=int, default=0, help="of the training and of the moments of the kills")
    resume.add_argument(
        "--workers", type=int, default=1, choices=(1, 2, 3, 4), help="processes that train together, and are killed"
    )
    resume.set_defaults(run=run_resume)


def run_resume(args: argparse.Namespace) -> int:
    """Exit code 0: equal; 1: different."""
    from sensorlab.selftest.resume import report

    return 0 if report(args.kills, args.seed, args.workers) else 1
