"""``--validate``: the metrics of a run's checkpoint, or of a weights file, without training."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorlab.cluster.commands import launch
from sensorlab.cluster.files import REPORT, read_json
from sensorlab.cluster.preflight import open_tracking
from sensorlab.cluster.program import VAL, build_task, place_of, revision_in_use, validation_spec
from sensorlab.cluster.single import RunPlan, end_run
from sensorlab.cluster.start import Cluster
from sensorlab.cluster.sweep import new_name
from sensorlab.cluster.worker import RunContext, RunSpec, TrackingTarget
from sensorlab.config import apply_overrides, as_dict, canonical_json
from sensorlab.engine.checkpoint import CheckpointStore
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.client import open_client
from sensorlab.runs.links import run_link
from sensorlab.runs.store import Store
from sensorlab.runs.table import number
from sensorlab.runs.tags import PARENT_TAG

# What may be set for the validation of a run: where, on what and how it is measured. The rest is of its training.
MAY_SET = ("eval", "data", "task", "resources", "tracking", "output_dir", "train.precision", "train.channels_last")
_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Validation:
    """Evaluates weights on all workers."""

    weights: str

    def datasets(self, spec: RunSpec) -> dict[str, Callable[[], Any]]:
        from sensorlab.data.ray_stream import ray_dataset

        config = experiment_from(spec.experiment)
        stream = validation_spec(config, spec.dataset)
        return {VAL: functools.partial(ray_dataset, stream, config.resources.num_workers)}

    def train(self, context: RunContext) -> Mapping[str, Any]:
        import ray.train

        from sensorlab.data.ray_stream import RayStream
        from sensorlab.engine.callbacks.json_log import JsonLog
        from sensorlab.engine.callbacks.panel_files import PanelFiles
        from sensorlab.engine.callbacks.table_files import TableFiles
        from sensorlab.engine.validate import validate, weights_of

        config, spec, workers = context.config, context.spec, context.workers
        stream_spec = validation_spec(config, spec.dataset)
        stream = RayStream(stream_spec, ray.train.get_dataset_shard(VAL), **place_of(workers))
        files = [JsonLog(), *([] if spec.tracking else [PanelFiles(), TableFiles()])]
        try:
            measured = validate(
                config,
                build_task(config),
                stream,
                run_dir=context.run_dir,
                weights=weights_of(Path(self.weights)),
                workers=workers,
                callbacks=[*context.callbacks, *files],
                provenance={"dataset": stream_spec.split.dataset_digest, "code": revision_in_use()},
            )
        finally:
            stream.close()
        return {"metrics": measured.metrics, "protocols": measured.protocols, "step": measured.cursor.step}


@dataclass(frozen=True)
class Subject:
    """What is validated: weights, the experiment that they belong to, and the run that they came from."""

    weights: Path
    experiment: ExperimentConfig
    dataset: str = ""  # where the run found it; empty: where the experiment says
    run_dir: Path | None = None
    run_id: str | None = None  # in the tracking store
    is_run: bool = False  # of --resume's kind: it says where it was recorded
    tracking_uri: str | None = None  # of a run; None: it was not recorded, and its validation is not either


def find_subject(args: argparse.Namespace, tree: Mapping[str, Any], where: str) -> Subject:
    """What ``--validate`` and ``--checkpoint`` name; ``tree``: the experiment file, for weights of no run.

    Raises:
        UserError: unknown run, no such checkpoint, or overrides that change a training that is over.
    """
    path = Path(args.validate).expanduser()
    if path.is_file():
        if args.checkpoint:
            raise UserError(f"--checkpoint chooses among those of a run; {path} is a file of weights")
        return Subject(path.resolve(), experiment_from(apply_overrides(tree, args.overrides), where))
    if args.debug:
        raise UserError("--debug belongs to the experiment of a weights file; a run has its own experiment")
    for item in args.overrides:
        key = item.partition("=")[0]
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_SET):
            raise UserError(f"{item}: --validate does not train, it takes keys of {', '.join(MAY_SET)}")
    if (path / _MANIFEST).is_file():
        if args.checkpoint:
            raise UserError(f"{path} is a checkpoint already: leave out --checkpoint")
        return _of_checkpoint(path.resolve(), args.overrides)
    plan = RunPlan.load(launch.root_of(args, tree), args.validate)
    experiment = _changed(as_dict(plan.experiment), args.overrides)
    moved = experiment.data.path != plan.experiment.data.path
    elsewhere = experiment.tracking.uri != plan.experiment.tracking.uri
    return Subject(
        weights=_checkpoint_of(plan, args.checkpoint or "best"),
        experiment=experiment,
        dataset="" if moved else plan.dataset,
        run_dir=plan.run_dir,
        run_id=plan.run_id,
        is_run=True,
        tracking_uri=experiment.tracking.uri if elsewhere else plan.tracking_uri,
    )


def _changed(tree: Mapping[str, Any], overrides: list[str]) -> ExperimentConfig:
    return experiment_from(apply_overrides(tree, overrides), where="validated experiment")


def _of_checkpoint(path: Path, overrides: list[str]) -> Subject:
    """A checkpoint by its directory, for example that of a sweep's best trial: it holds its experiment."""
    try:
        saved = json.loads((path / "state.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: no readable state.json ({error})") from error
    run_dir = path.parent.parent
    report = read_json(run_dir / REPORT) or {}
    return Subject(path, _changed(saved, overrides), run_dir=run_dir, run_id=report.get("run_id"))


def _checkpoint_of(plan: RunPlan, which: str) -> Path:
    evaluation = plan.experiment.eval
    store = CheckpointStore(plan.run_dir / "checkpoints", best_metric=evaluation.metric, best_mode=evaluation.mode)
    if which not in ("best", "latest"):
        path = Path(which).expanduser()
        if not (path / _MANIFEST).is_file():
            raise UserError(f"--checkpoint {which}: neither best, nor latest, nor a directory of a checkpoint")
        return path.resolve()
    found = store.best() if which == "best" else store.latest()
    if found is None and store.latest() is not None:
        raise UserError(f"no checkpoint of {plan.run_dir} has {evaluation.metric}; try --checkpoint latest")
    if found is None:
        raise UserError(f"{plan.run_dir} has no checkpoint yet")
    return found.path


def validate_main(args: argparse.Namespace, tree: Mapping[str, Any], where: str, code_root: str) -> int:
    """Measure and print; recorded as a run of its own, with the role "validation".

    Raises:
        UserError: see :func:`find_subject`; weights of another model; it does not fit on the cluster.
    """
    subject = find_subject(args, tree, where)
    config = subject.experiment
    root = launch.root_of(args, {"output_dir": config.output_dir})
    if subject.run_dir is not None and not args.output:
        root = subject.run_dir.parent.parent if subject.dataset else root
    run_dir = root / "validations" / new_name(config)
    cluster = launch.cluster_for(args, config)
    uri = subject.tracking_uri if subject.is_run else launch.store_uri(args, config, root)
    store = open_tracking(uri, config.tracking.experiment, len(cluster.nodes))
    dataset = launch.dataset_for(config, root, subject.dataset)
    launch.say(f"validating {subject.weights} on split {config.data.val_split!r}; files in {run_dir}")
    result, run_id = _recorded(subject, store, run_dir, dataset, cluster, args.overrides, code_root)
    _print(result, config, subject, run_dir, store, run_id)
    return 0


def _recorded(
    subject: Subject,
    store: Store | None,
    run_dir: Path,
    dataset: str,
    cluster: Cluster,
    overrides: list[str],
    code_root: str,
) -> tuple[dict[str, Any], str | None]:
    """(result, id of the run that holds it)."""
    job = functools.partial(
        launch.work, subject.experiment, cluster, Validation(str(subject.weights)), run_dir=run_dir, dataset=dataset
    )
    if store is None:
        return job(), None
    tags = {"sensorlab.role": "validation", "sensorlab.weights": str(subject.weights)}
    if subject.run_id:
        tags |= {"sensorlab.validated_run": subject.run_id, PARENT_TAG: subject.run_id}
    if subject.run_dir:
        tags["sensorlab.validated_run_dir"] = str(subject.run_dir)
    run = open_client(store.uri).create_run(store.experiment_id, tags=tags, run_name=run_dir.name)
    run_id = str(run.info.run_id)
    params = {key: value for key, _, value in (item.partition("=") for item in overrides)}
    params |= {"data.val_split": subject.experiment.data.val_split}
    status = "KILLED"
    try:
        result = job(tracking=TrackingTarget(store.uri, run_id, params, code_root=code_root))
        status = "FINISHED"
        return result, run_id
    except Exception:
        status = "FAILED"
        raise
    finally:
        end_run(store, run_id, status)


def _print(
    result: Mapping[str, Any],
    config: ExperimentConfig,
    subject: Subject,
    run_dir: Path,
    store: Store | None,
    run_id: str | None,
) -> None:
    metrics, protocols = dict(result["metrics"]), result["protocols"]
    width = max(map(len, metrics))
    launch.say("")
    for name in sorted(metrics, key=lambda name: name != config.eval.metric):
        launch.say(f"{name.ljust(width)}  {number(metrics[name])}")
    launch.say("")
    by_protocol: dict[str, list[str]] = {}
    for name in metrics:
        if name in protocols and "task" not in protocols[name]:  # a loss is defined by the task's configuration
            by_protocol.setdefault(canonical_json(protocols[name]), []).append(name)
    for text, names in by_protocol.items():
        shown = ", ".join(f"{key}={value}" for key, value in json.loads(text).items() if value is not None)
        launch.say(f"protocol of {', '.join(names)}: {shown}")
    link = run_link(store, run_id) if store is not None and run_id is not None else None
    if link:
        launch.say(f"MLflow run {run_id}: {link}")
    outcome = {
        "weights": str(subject.weights),
        "step": result["step"],
        "split": config.data.val_split,
        "directory": str(run_dir),
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "validated_run": subject.run_id,
        "run_id": run_id,
        "link": link,
    }
    launch.say(json.dumps(outcome))
