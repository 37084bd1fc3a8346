"""Whether a run can be repeated here: the same data, the same code, and what of the machine changes numbers."""

from __future__ import annotations

from pathlib import Path

import sensorlab
from sensorlab.data.dataset import PreparedDataset
from sensorlab.engine.checkpoint import CheckpointError, verify
from sensorlab.errors import UserError
from sensorlab.replay.record import RecordedRun
from sensorlab.runs.environment import Environment, capture_environment, changed_sources

PACKAGES = ("torch", "numpy", "pillow", "pyarrow")  # they decode, draw and compute
SYSTEM = ("device", "processor", "cuda")
_SHOWN = 6


def present_environment() -> Environment:
    """The environment of this process, with the code of the installed package."""
    return capture_environment(Path(sensorlab.__file__).resolve().parents[2])


def differences(recorded: RecordedRun, dataset: str, present: Environment) -> list[str]:
    """Why a repetition on ``dataset`` could give other numbers; empty if nothing speaks against equal ones.

    Raises:
        UserError: there is no prepared dataset at ``dataset``.
    """
    return [*_data(recorded, dataset), *_fork(recorded), *_code(recorded, present), *_machine(recorded, present)]


def _data(recorded: RecordedRun, dataset: str) -> list[str]:
    try:
        found = PreparedDataset.open(dataset).digest
    except UserError as error:
        raise UserError(f"{error}; name the dataset of the run with --data PATH") from error
    expected = recorded.run.tag("dataset")
    if found == expected:
        return []
    return [f"data: {dataset} has digest {found[:16]}, the run was trained on {expected[:16] or 'an unknown one'}"]


def _fork(recorded: RecordedRun) -> list[str]:
    """A run that began with another one's state is repeated from the same bytes."""
    expected, fork = recorded.run.tag("fork"), recorded.experiment.train.fork
    if fork is None:
        return ["fork: the run began with the state of another run, and no longer says which"] if expected else []
    try:
        found = verify(Path(fork.checkpoint)).seal
    except CheckpointError as error:
        return [f"fork: {error}, the run began with its state"]
    if found == expected:
        return []
    return [f"fork: {fork.checkpoint} has seal {found[:16]}, the run began with {expected[:16] or 'an unknown one'}"]


def _code(recorded: RecordedRun, present: Environment) -> list[str]:
    """By the digests of the source files, which cover what was never committed; without them by revision and diff."""
    run = recorded.run
    then, now = run.text("environment/source.txt"), present.files["source.txt"]
    revision = run.tag("code") or run.tags.get("mlflow.source.git.commit", "unknown")
    if then is not None:
        changed = changed_sources(then, now)
        if not changed:
            return []
        shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        how = "its code: `git worktree add DIR REVISION`, then `git apply` the run's environment/git.diff there"
        return [f"code: {len(changed)} files differ from those of the run, revision {revision}: {shown} ({how})"]
    here = present.tags["mlflow.source.git.commit"]
    there = run.tags.get("mlflow.source.git.commit", "unknown")
    if here != there or "unknown" in (here, there):
        return [f"code: the run was trained with revision {there}, this is {here}"]
    if (run.text("environment/git.diff") or "") != present.files.get("git.diff", ""):
        return [f"code: revision {here} in both, but with other uncommitted changes (environment/git.diff of the run)"]
    return []


def _machine(recorded: RecordedRun, present: Environment) -> list[str]:
    run = recorded.run
    found = []
    python_then, python_now = run.tag("python"), present.tags["sensorlab.python"]
    if python_then.split(".")[:2] != python_now.split(".")[:2]:
        found.append(f"environment: python {python_then}, here {python_now}")
    packages = [_pairs(text, "==") for text in (run.text("environment/packages.txt"), present.files["packages.txt"])]
    system = [_pairs(text, ": ") for text in (run.text("environment/system.txt"), present.files["system.txt"])]
    for names, (then, now) in ((PACKAGES, packages), (SYSTEM, system)):
        for name in names:
            if then.get(name) != now.get(name):
                found.append(f"environment: {name} {then.get(name, 'unknown')}, here {now.get(name, 'none')}")
    return found


def _pairs(text: str | None, separator: str) -> dict[str, str]:
    lines = [line.partition(separator) for line in (text or "").splitlines()]
    return {name.lower(): value for name, _, value in lines}
