"""What a run was, from the tracking store: enough to train it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sensorlab.cluster.files import read_json
from sensorlab.cluster.plans import RUN, SWEEP
from sensorlab.config import digest, parse_yaml
from sensorlab.engine.compare import COMPARED, Series, read_series
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.names import metric_name
from sensorlab.runs.query import StoredRun

_REPEATABLE = ("run", "trial", "replay")
CONFIG_FILE = "config/experiment.yaml"


@dataclass(frozen=True)
class RecordedRun:
    """A run of the store with the configuration that it trained."""

    run: StoredRun
    experiment: ExperimentConfig

    @classmethod
    def of(cls, run: StoredRun) -> RecordedRun:
        """Read the record of ``run``.

        Raises:
            UserError: it is no training, or its configuration is missing, invalid now, or not the one it says it used.
        """
        if run.role not in _REPEATABLE:
            raise UserError(f"run {run.run_id} ({run.name}) is a {run.role or 'foreign run'}, not a training")
        text = run.text(CONFIG_FILE)
        if text is None:
            raise UserError(
                f"run {run.run_id} ({run.name}) recorded no {CONFIG_FILE}: it did not come to its first step"
            )
        tree = parse_yaml(text)
        experiment = experiment_from(tree, where=f"{CONFIG_FILE} of run {run.run_id}")
        recorded = run.tag("config_digest")
        if digest(experiment) != recorded:
            raise UserError(
                f"the configuration of run {run.run_id} means something else to this version of sensorlab (digest "
                f"{digest(experiment)}, recorded {recorded}): repeat it with the code that it was trained with, "
                f"{run.tag('code') or 'which was not recorded'}"
            )
        return cls(run, experiment)

    @property
    def run_dir(self) -> Path | None:
        """Directory of the run, if it is on this machine."""
        path = Path(self.run.tag("run_dir") or "/nowhere")
        return path if path.is_dir() else None

    @property
    def output_root(self) -> Path | None:
        """``root/runs/NAME`` or ``root/sweeps/NAME/trials/ID``: the root, if it is on this machine."""
        if self.run_dir is None:
            return None
        return self.run_dir.parents[3] if self.run.role == "trial" else self.run_dir.parents[1]

    @property
    def dataset_path(self) -> str:
        """Where the prepared dataset was."""
        for entry in self.run.datasets.values():
            return str(entry["source"])
        if self.run_dir is not None:
            sweep = self.run_dir.parent.parent
            for plan in (self.run_dir / RUN.file, sweep / SWEEP.file):
                if found := (read_json(plan) or {}).get("dataset"):
                    return str(found)
        return self.experiment.data.path

    @property
    def _numbers_file(self) -> Path | None:
        file = self.run_dir / "metrics.jsonl" if self.run_dir is not None else None
        return file if file is not None and file.is_file() else None

    def series(self) -> Series:
        """(step, name) -> value of every loss and metric: of the run's file, else of the store."""
        if self._numbers_file is not None:
            return read_series(self._numbers_file)
        names = [name for name in self.run.run.data.metrics if name.startswith(COMPARED)]
        series = {(step, name): value for name in names for step, value in self.run.points(name)}
        if not series:
            raise UserError(f"run {self.run.run_id} ({self.run.name}) has no number to compare with")
        return series

    def spelled(self, repeated: Series) -> Series:
        """The numbers of a repetition by the names that :meth:`series` has: the store spells some of them otherwise."""
        if self._numbers_file is not None:
            return repeated
        return {(step, metric_name(name)): value for (step, name), value in repeated.items()}
