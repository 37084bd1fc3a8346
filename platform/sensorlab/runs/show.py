"""What the terminal says of recorded runs: the list of them, and one of them with where it came from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from sensorlab.errors import UserError
from sensorlab.runs.attempts import FILE as ATTEMPTS_FILE
from sensorlab.runs.lineage import descent, lineage_table, place
from sensorlab.runs.links import run_link, ui_command
from sensorlab.runs.query import RunIndex, StoredRun
from sensorlab.runs.sweep_runs import leading_level
from sensorlab.runs.table import aligned, duration, listed, number
from sensorlab.runs.tags import FIDELITY_TAG

SHORT_ID = 12


def in_order(runs: Sequence[StoredRun], sort: str) -> list[StoredRun]:
    """Runs by "time" (newest first) or by "objective" (best first, those without one last).

    What was measured by another protocol does not compare: its runs stand together, those of most runs first.
    """
    if sort == "time":
        return list(runs)
    measured = [(run.tag("objective"), run.protocol) for run in runs if run.best is not None]

    def key(run: StoredRun) -> tuple[bool, str, int, str, float]:
        objective, value = run.tag("objective"), math.nan if run.best is None else run.best[0]
        if math.isnan(value):
            return True, objective, 0, "", 0.0
        sign = 1.0 if run.tag("mode") == "min" else -1.0
        return False, objective, -measured.count((objective, run.protocol)), run.protocol, sign * value

    return sorted(runs, key=key)


def run_table(runs: Sequence[StoredRun]) -> str:
    """One line for each run. A note follows where the objectives of the list do not compare."""
    rows = [["run", "name", "role", "status", "started", "time", "objective", "best", "step", "config"]]
    for run in runs:
        value, step = run.best or (math.nan, -1)
        rows.append(
            [
                run.run_id[:SHORT_ID],
                run.name,
                run.role or "-",
                run.status.lower(),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.run.info.start_time / 1000)),
                duration(run.seconds),
                run.tag("objective") or "-",
                "-" if math.isnan(value) else number(value),
                "-" if step < 0 else str(step),
                run.tag("config_digest")[:8] or "-",
            ]
        )
    table = aligned(rows, left=(0, 1, 2, 3, 4, 6, 9))
    if len({run.protocol for run in runs if run.protocol}) > 1:
        table += "\n\nnot all of these objectives were measured by the same protocol: `sensorlab runs diff` says how"
    return table


def run_details(run: StoredRun) -> str:
    """Everything that the store knows of where a run came from and what it left."""
    blocks = [listed(_identity(run))]
    blocks.append("origin\n" + listed(_origin(run) or [("not recorded", "")], "  "))
    line = descent(run.client, run.run)
    if len(line) > 1:
        blocks.append("lineage\n" + "\n".join(f"  {each}" for each in lineage_table(line).splitlines()))
    if run.params:
        blocks.append("parameters\n" + listed(sorted(run.params.items()), "  "))
    if protocol := protocol_of(run):
        blocks.append(f"protocol of {run.tag('objective')}\n" + listed(protocol, "  "))
    metrics = [(name, value) for name, value in sorted(run.metrics.items()) if not name.startswith("system/")]
    if metrics:
        blocks.append("metrics (latest)\n" + listed([(name, number(value)) for name, value in metrics], "  "))
    if checkpoints := _checkpoints(run):
        blocks.append("checkpoints\n" + listed(checkpoints, "  "))
    attempts = run.json(ATTEMPTS_FILE).get("attempts", [])
    if attempts:
        blocks.append("attempts\n" + "\n".join(f"  {line}" for line in _attempts(attempts).splitlines()))
    command = ui_command(run.store.uri)
    start = f" (start the pages with: {command})" if command else ""
    return "\n\n".join([*blocks, f"{run_link(run.store, run.run_id)}{start}"])


def best_checkpoint(run: StoredRun) -> str:
    """Where the best checkpoint of a run is, and the commands that use it. Raises ``UserError`` without one."""
    path = run.tag("best_checkpoint")
    if not path:
        raise UserError(f"run {run.run_id[:SHORT_ID]} ({run.name}) has no best checkpoint: it was never evaluated")
    value, step = run.best or (math.nan, -1)
    lines = [
        ("run", f"{run.run_id} ({run.name}, {run.status.lower()})"),
        (run.tag("objective") or "objective", f"{number(value)} at step {step}"),
        ("checkpoint", path if Path(path).is_dir() else f"{path} (not on this machine, or removed)"),
        ("measure it", f"python experiments/train_bev.py --validate {path}"),
        ("start from it", f"python experiments/train_bev.py train.init.path={path}/{_weights(Path(path))}"),
        ("repeat the run", f"sensorlab replay {run.run_id[:SHORT_ID]}"),
    ]
    return listed(lines)


def protocol_of(run: StoredRun) -> list[tuple[str, str]]:
    """All that defines the objective of a run, as it was recorded with it."""
    protocols = run.json("config/protocols.json")
    protocol = protocols.get(run.tag("objective"), {})
    return [(key, number(value)) for key, value in protocol.items() if value is not None]


def _identity(run: StoredRun) -> list[tuple[str, str]]:
    value, step = run.best or (math.nan, -1)
    goodput = run.metrics.get("perf/goodput")
    lines = [
        ("run", f"{run.run_id} ({run.name})"),
        ("experiment", run.store.experiment),
        ("role", run.role),
        ("place", place(run.run)),
        ("sweep", run.parent_id if run.role == "trial" else ""),
        ("best trial", run.tag("best_run_id")),
        ("replay of", run.tag("replay_of")),
        ("replayed by", run.tag("replayed_by")),
        ("status", run.status.lower() + (f": {run.tag('error')}" if run.tag("error") else "")),
        ("time", duration(run.seconds) + (f", goodput {goodput:.0%}" if goodput is not None else "")),
        (run.tag("objective"), "" if math.isnan(value) else f"{number(value)} at step {step} (best)"),
    ]
    return [(name, text) for name, text in lines if name and text]


def _origin(run: StoredRun) -> list[tuple[str, str]]:
    datasets = [
        (f"dataset {use}", f"{entry['name']}, {entry['profile'].get('num_samples', '?')} samples, {entry['source']}")
        for use, entry in run.datasets.items()
    ]
    code = run.tag("code") or run.tags.get("mlflow.source.git.commit", "")
    changed = ", with uncommitted changes (environment/git.diff)" if run.tag("git_dirty") == "true" else ""
    lines = [
        ("configuration", run.tag("config_digest")),
        ("seed", run.tag("seed")),
        ("data digest", run.tag("dataset")),
        *datasets,
        ("code", code and f"{code}{changed}"),
        (
            "environment",
            run.tag("python") and f"python {run.tag('python')}, {run.tag('device')}, host {run.tag('host')}",
        ),
        ("files", run.tag("run_dir")),
    ]
    return [(name, text) for name, text in lines if text]


def _checkpoints(run: StoredRun) -> list[tuple[str, str]]:
    lines = [("best", run.tag("best_checkpoint")), ("latest", run.tag("latest_checkpoint"))]
    if run.tag("weights_sha256"):
        lines.append(("weights", f"sha256 {run.tag('weights_sha256')} at step {run.tag('latest_step')}"))
    return [(name, text) for name, text in lines if text]


def _attempts(attempts: Sequence[dict]) -> str:
    rows = [["", "started", "host", "from step", "to step", "time", "reason", "outcome"]]
    for each in attempts:
        ended = each["ended"] is not None
        rows.append(
            [
                str(each["number"]),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["started"])),
                each["host"],
                str(each["first_step"]),
                str(each["last_step"]) if ended else "-",
                duration(each["ended"] - each["started"]) if ended else "-",
                each["reason"],
                each["outcome"],
            ]
        )
    return aligned(rows, left=(1, 2, 6, 7))


def _weights(checkpoint: Path) -> str:
    return "ema.safetensors" if (checkpoint / "ema.safetensors").is_file() else "model.safetensors"


def best_of(index: RunIndex, text: str | None) -> StoredRun:
    """The best trial of the sweep that ``text`` names (default: the latest sweep), or the run itself.

    It is the one that the sweep has noted as its best. If that is not in the store, it is the one with the best value
    among those that compare: of the leading level of fidelity, and of the protocol of most of these. Trials that
    failed are no candidates, whatever they measured.

    Raises:
        UserError: no such run, no sweep, or no trial with an objective.
    """
    sweep = index.find(text) if text else next((run for run in index.runs() if run.role == "sweep"), None)
    if sweep is None:
        raise UserError("there is no sweep in the store; name a run: `sensorlab runs best RUN`")
    if sweep.role != "sweep":
        return sweep
    trials = [run for run in index.runs(parent=sweep) if run.best is not None and run.status != "FAILED"]
    noted = next((run for run in trials if run.run_id == sweep.tag("best_run_id")), None)
    if noted is not None:
        return noted
    level = leading_level((_level(run), run.status) for run in trials)
    trials = [run for run in trials if _level(run) == level]
    protocols = [run.protocol for run in trials]
    comparable = [run for run in trials if run.protocol == max(protocols, key=protocols.count)]
    if not comparable:
        raise UserError(f"no trial of sweep {sweep.name} has an objective yet")
    if len(comparable) < len(trials):
        print(f"{len(trials) - len(comparable)} trials measured with another protocol than most; they do not compare")
    return in_order(comparable, "objective")[0]


def _level(run: StoredRun) -> int:
    return int(run.tags.get(FIDELITY_TAG, 0))
