"""The description of a run on its page: where it came from and what it left, with a link to each.

MLflow shows the tag ``mlflow.note.content`` as Markdown above the run's tables. A text that a person has written or
changed there is left alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sensorlab.runs.names import MAX_TAG_LENGTH
from sensorlab.runs.table import duration
from sensorlab.runs.tags import PARENT_TAG, REPLAY_TAG, ROLE_TAG, TRIAL_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

NOTE_TAG = "mlflow.note.content"
NOTE_DIGEST_TAG = "sensorlab.note_sha256"  # of the description that was written here last
_MAX_ATTEMPTS = 20


def describe(client: MlflowClient, run_id: str, facts: Mapping[str, Any]) -> None:
    """Write the description of a run from what is known of it (see :func:`overview`)."""
    run = client.get_run(run_id)
    present = run.data.tags.get(NOTE_TAG, "")
    if present and _digest(present) != run.data.tags.get(NOTE_DIGEST_TAG):
        return
    text = overview(run, facts)
    if text != present:
        # In this order: after a crash in between, the old text counts as a person's and stays.
        client.set_tag(run_id, NOTE_DIGEST_TAG, _digest(text))
        client.set_tag(run_id, NOTE_TAG, text)


def overview(run: Run, facts: Mapping[str, Any]) -> str:
    """The description as Markdown.

    Args:
        run: as the store has it; its tags name its sweep, or the run that it repeats.
        facts: ``attempts`` (see :class:`sensorlab.runs.attempts.Attempt`), ``checkpoints`` (name to path), ``dataset``,
            ``config_digest``, ``code``, ``run_dir``, ``environment``; or ``trials`` (name, run id, remark) of a sweep.
            What is missing is left out.
    """
    page = f"#/experiments/{run.info.experiment_id}/runs"

    def link(text: str, run_id: str) -> str:
        return f"[{text}]({page}/{run_id})"

    def file(name: str) -> str:
        return f"[{name}]({page}/{run.info.run_id}/artifacts/{name})"

    rows = _origin(run.data.tags, link)
    if facts.get("trials"):
        rows.append(("trials", _lines([f"{link(name, run_id)} {remark}" for name, run_id, remark in facts["trials"]])))
    if facts.get("attempts"):
        rows.append(
            ("attempts", _lines([_attempt(each) for each in facts["attempts"]]) + f"<br>{file('attempts.json')}")
        )
    if facts.get("checkpoints"):
        rows.append(("checkpoints", _lines([f"{name}: `{path}`" for name, path in facts["checkpoints"].items()])))
    if facts.get("dataset"):
        rows.append(("dataset", f"`{facts['dataset']}` (under Datasets, with its splits)"))
    if facts.get("config_digest"):
        rows.append(("configuration", f"`{facts['config_digest']}`, {file('config/experiment.yaml')}"))
    if facts.get("code"):
        changes = f", changes: {file('environment/git.diff')}" if facts.get("has_diff") else ""
        rows.append(("code", f"`{facts['code']}`{changes}"))
    if facts.get("environment"):
        rows.append(
            (
                "environment",
                f"{facts['environment']}: {file('environment/system.txt')}, {file('environment/packages.txt')}",
            )
        )
    if facts.get("run_dir"):
        rows.append(("files", f"`{facts['run_dir']}`"))
    text = "\n".join(["| | |", "| --- | --- |", *(f"| **{name}** | {content} |" for name, content in rows)])
    return text if len(text) <= MAX_TAG_LENGTH else f"{text[: MAX_TAG_LENGTH - 60].rpartition('<br>')[0]}<br>... |"


def _origin(tags: Mapping[str, str], link: Any) -> list[tuple[str, str]]:
    rows = []
    role, parent = tags.get(ROLE_TAG), tags.get(PARENT_TAG)
    if role == "trial" and parent:
        rows.append(("sweep", f"{link('sweep', parent)}, trial {tags.get(TRIAL_TAG, '')}"))
    if tags.get(REPLAY_TAG):
        rows.append(("replay of", link(tags[REPLAY_TAG], tags[REPLAY_TAG])))
    if tags.get("sensorlab.validated_run"):
        rows.append(("validation of", link(tags["sensorlab.validated_run"], tags["sensorlab.validated_run"])))
    return rows


def _attempt(attempt: Mapping[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(attempt["started"]))
    begin = f"{attempt['number']}. {when} UTC, host {attempt['host']}, from step {attempt['first_step']}"
    text = f"{begin} ({attempt['reason']}): {attempt['outcome']}"
    if attempt["ended"] is None:
        return text
    return f"{text} at step {attempt['last_step']}, {duration(attempt['ended'] - attempt['started'])}"


def _lines(texts: Sequence[str]) -> str:
    shown = [text.replace("|", "/").replace("\n", " ") for text in texts[-_MAX_ATTEMPTS:]]
    left_out = [f"({len(texts) - _MAX_ATTEMPTS} earlier)"] if len(texts) > _MAX_ATTEMPTS else []
    return "<br>".join(left_out + shown)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
