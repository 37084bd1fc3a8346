"""The description of a run on its page: where it came from and what it left, with a link to each.

MLflow shows the tag ``mlflow.note.content`` as Markdown above the run's tables. A text that a person has written or
changed there is left alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sensorlab.runs.lineage import descent, lineage_lines
from sensorlab.runs.links import WORKFLOW
from sensorlab.runs.names import MAX_TAG_LENGTH
from sensorlab.runs.table import duration
from sensorlab.runs.tags import FORKED_TAG, PARENT_TAG, REPLAY_TAG, ROLE_TAG, TRIAL_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

NOTE_TAG = "mlflow.note.content"
NOTE_DIGEST_TAG = "sensorlab.note_sha256"  # of the description that was written here last
_MAX_LINES = 10
_MAX_REASON = 120
_SHORT = 12


def describe(client: MlflowClient, run_id: str, facts: Mapping[str, Any]) -> None:
    """Write the description of a run from what is known of it (see :func:`overview`)."""
    run = client.get_run(run_id)
    present = run.data.tags.get(NOTE_TAG, "")
    if present and _digest(present) != run.data.tags.get(NOTE_DIGEST_TAG):
        return
    line = descent(client, run)
    text = overview(run, facts if len(line) == 1 else {"lineage": lineage_lines(line), **facts})
    if text != present:
        # In this order: after a crash in between, the old text counts as a person's and stays.
        client.set_tag(run_id, NOTE_DIGEST_TAG, _digest(text))
        client.set_tag(run_id, NOTE_TAG, text)


def overview(run: Run, facts: Mapping[str, Any]) -> str:
    """The description as Markdown.

    Args:
        run: as the store has it; its tags name its sweep, or the run that it repeats.
        facts: ``attempts`` (see :class:`sensorlab.runs.attempts.Attempt`), ``checkpoints`` (name to path), ``dataset``,
            ``config_digest``, ``code``, ``run_dir``, ``environment``; or ``trials`` (name, run id, remark) of a sweep,
            best first; ``lineage``, ``lineage of the best`` (the same) in a population, first generation first. What is
            missing is left out.
    """
    page = _Page(run)
    rows = _rows(facts, page)
    # The page shows two lines until one asks for more: the chain with its links comes first.
    chain = " → ".join(_origin(run.data.tags, page) + _chain(facts, page))
    lines = ["| | |", "| --- | --- |", *(f"| **{name}** | {content} |" for name, content in rows)]
    text = "\n".join([chain, "", *lines]) if chain else "\n".join(lines)
    return text if len(text) <= MAX_TAG_LENGTH else f"{text[: MAX_TAG_LENGTH - 60].rpartition('<br>')[0]}<br>... |"


class _Page:
    """Links inside of MLflow's pages."""

    def __init__(self, run: Run) -> None:
        self._runs = f"#/experiments/{run.info.experiment_id}/runs"
        self._own = run.info.run_id

    def run(self, text: str, run_id: str) -> str:
        return f"[{text}]({self._runs}/{run_id}?{WORKFLOW})"

    def file(self, name: str, text: str = "") -> str:
        return f"[{text or name}]({self._runs}/{self._own}/artifacts/{name}?{WORKFLOW})"


def _chain(facts: Mapping[str, Any], page: _Page) -> list[str]:
    """What the run is made of, each in a few words."""
    parts = []
    if attempts := facts.get("attempts"):
        parts.append(page.file("attempts.json", f"{len(attempts)} attempt{'s' * (len(attempts) > 1)}"))
    if facts.get("dataset"):
        parts.append(f"dataset {facts['dataset'][:_SHORT]}")
    if facts.get("config_digest"):
        parts.append(page.file("config/experiment.yaml", f"configuration {facts['config_digest'][:_SHORT]}"))
    if facts.get("code"):
        changes = f" with {page.file('environment/git.diff', 'changes')}" if facts.get("has_diff") else ""
        parts.append(f"code {facts['code'][:_SHORT]}{changes}")
    if facts.get("environment"):
        parts.append(page.file("environment/system.txt", "environment"))
    return parts


def _rows(facts: Mapping[str, Any], page: _Page) -> list[tuple[str, str]]:
    """The same in full."""
    checkpoints = [f"{name}: `{path}`" for name, path in facts.get("checkpoints", {}).items()]
    files = f"{page.file('environment/system.txt')}, {page.file('environment/packages.txt')}"
    rows = [
        ("trials", _lines(_linked(facts.get("trials", ()), page), keep_first=True)),
        *((name, _lines(_linked(facts.get(name, ()), page))) for name in ("lineage", "lineage of the best")),
        ("attempts", _lines([_attempt(each) for each in facts.get("attempts", ())])),
        ("checkpoints", _lines(checkpoints)),
        ("dataset", facts.get("dataset") and f"`{facts['dataset']}`, with its splits under Datasets"),
        ("configuration", facts.get("config_digest") and f"`{facts['config_digest']}`"),
        ("code", facts.get("code") and f"`{facts['code']}`, {page.file('environment/source.txt')}"),
        ("environment", facts.get("environment") and f"{facts['environment']}: {files}"),
        ("files", facts.get("run_dir") and f"`{facts['run_dir']}`"),
    ]
    return [(name, content) for name, content in rows if content]


def _origin(tags: Mapping[str, str], page: _Page) -> list[str]:
    parts = []
    role, parent = tags.get(ROLE_TAG), tags.get(PARENT_TAG)
    if role == "trial" and parent:
        parts.append(f"{page.run('sweep', parent)} → trial {tags.get(TRIAL_TAG, '')}")
    if tags.get(FORKED_TAG):
        parts.append(f"went on from {page.run(tags[FORKED_TAG][:_SHORT], tags[FORKED_TAG])}")
    for name, tag in (("replay of", REPLAY_TAG), ("validation of", "sensorlab.validated_run")):
        if tags.get(tag):
            parts.append(f"{name} {page.run(tags[tag][:_SHORT], tags[tag])}")
    return parts


def _attempt(attempt: Mapping[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(attempt["started"]))
    begin = f"{attempt['number']}. {when} UTC, host {attempt['host']}, from step {attempt['first_step']}"
    text = f"{begin} ({attempt['reason'][:_MAX_REASON]}): {attempt['outcome'][:_MAX_REASON]}"
    if attempt["ended"] is None:
        return text
    return f"{text} at step {attempt['last_step']}, {duration(attempt['ended'] - attempt['started'])}"


def _linked(runs: Sequence[tuple[str, str, str]], page: _Page) -> list[str]:
    return [f"{page.run(name, run_id)} {remark}" for name, run_id, remark in runs]


def _lines(texts: Sequence[str], keep_first: bool = False) -> str:
    """Texts as lines of a cell; of too many the last ones, or the first ones."""
    clean = [text.replace("|", "/").replace("\n", " ") for text in texts]
    more = len(texts) - _MAX_LINES
    if more > 0:
        clean = [*clean[:_MAX_LINES], f"({more} more)"] if keep_first else [f"({more} earlier)", *clean[more:]]
    return "<br>".join(clean)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
