"""What runs in every training process: from a plain description of a run to the engine's loop.

The same function is the train function of a Ray Train worker, of a Tune trial that trains in its own process, and of
a single run in the driver. They differ in where reports go.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sensorlab.cluster.files import REPORT, RESULT, write_json
from sensorlab.cluster.lease import STALE_S, TRAINING, LeaseGuard, hold
from sensorlab.cluster.memory import give_back
from sensorlab.cluster.preflight import UNSHARED, Share
from sensorlab.cluster.progress import ProgressWriter
from sensorlab.config import digest
from sensorlab.engine.callbacks.base import Callback
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, experiment_from
from sensorlab.runs.pending import is_pending

if TYPE_CHECKING:
    from sensorlab.engine.training import Training
    from sensorlab.engine.workers import WorkerGroup

Report = dict[str, Any]

_LEASE_PATIENCE_S = STALE_S + 30  # what a killed driver leaves on a cluster takes a while to end


class Program(Protocol):
    """What a run does, in the two places where it does it. Picklable."""

    def datasets(self, spec: RunSpec) -> dict[str, Callable[[], Any]]:
        """Ray datasets by name, for ``TorchTrainer(datasets=...)``: functions that are called whenever the workers
        start, so that a restart continues where the latest checkpoint is."""
        ...

    def train(self, context: RunContext) -> Mapping[str, Any]:
        """Train in a worker, with the callbacks of ``context``; returns plain data."""
        ...


@dataclass(frozen=True)
class TrackingTarget:
    """A run that exists in the tracking store, or is to be made there, and what its page lists as parameters."""

    uri: str
    run_id: str
    params: Mapping[str, Any]
    log_scaled: tuple[str, ...] = ()
    code_root: str | None = None


@dataclass(frozen=True)
class RunSpec:
    """Everything that a worker is told. Plain data, small: it travels to every process of the run.

    Attributes:
        experiment: complete configuration, as ``as_dict`` gives it.
        run_dir: absolute directory of the run, visible to all of its workers.
        dataset: absolute path of the prepared dataset.
        program: what trains; the engine, unless a test or a benchmark puts something else in its place.
        in_process: the run has one worker, which is this process: no worker group, no ``ray.train`` session.
        tracking: the run in the tracking store that rank 0 feeds; ``None`` records nothing.
        resume: continue from the checkpoints of ``run_dir``; ``False`` refuses to start where there are some.
        share: of the cluster.
    """

    experiment: Mapping[str, Any]
    run_dir: str
    dataset: str
    program: Program
    in_process: bool = True
    tracking: TrackingTarget | None = None
    resume: bool = True
    share: Share = UNSHARED


@dataclass(frozen=True)
class RunContext:
    """A run inside of one of its processes."""

    spec: RunSpec
    config: ExperimentConfig
    workers: WorkerGroup
    callbacks: Sequence[Callback]

    @property
    def run_dir(self) -> Path:
        return Path(self.spec.run_dir)


class Reporter(Callback):
    """Reports each evaluated epoch to whoever schedules the run.

    An attempt that was killed between the checkpoint of an epoch and its report may or may not have sent it, so the
    next attempt sends it (again) before it goes on: no report is lost. Whoever passes reports on to a scheduler drops
    what it has passed on before (:class:`sensorlab.cluster.trial.Once`): none counts twice.

    The report carries the digest of the configuration that the engine holds: the driver compares it with the one of
    the configuration that it sent, so a trial that ignores its values cannot pass for one that used them.
    """

    goes_on_in_forks = False
    priority = 90  # after everything that records the epoch: the scheduler may end the process inside of ``send``

    def __init__(self, spec: RunSpec, objective: str, mode: str, send: Callable[[Report], None]) -> None:
        self._run_dir = Path(spec.run_dir)
        self._run_id = spec.tracking.run_id if spec.tracking and not is_pending(spec.tracking.run_id) else None
        self._objective = objective
        self._worst = -math.inf if mode == "max" else math.inf
        self._send = send
        self._evaluated = False  # since the last report

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._evaluated = bool(state.get("evaluated", False))

    def on_fit_start(self, training: Training) -> None:
        if training.cursor.batch == 0 or training.finished:  # else the epoch's end is still to come
            self.on_epoch_end(training, training.metrics)

    def on_metrics(self, training: Training, metrics: Mapping[str, float], step: int) -> None:
        self._evaluated = self._evaluated or self._objective in metrics

    def on_epoch_end(self, training: Training, metrics: Mapping[str, float]) -> None:
        if not self._evaluated:
            return
        self._evaluated = False
        best = training.store.best() if training.workers.is_main else None  # reads the whole checkpoint
        trained = training.workers.gather(digest(training.config))
        if len(set(trained)) > 1:  # the report is that of the main worker, and would vouch for the others
            named = ", ".join(f"rank {rank}: {one}" for rank, one in enumerate(trained))
            raise RuntimeError(f"the workers of {self._run_dir} train different configurations ({named})")
        self.report(
            epoch=training.cursor.epochs_begun,
            step=training.cursor.step,
            metrics=metrics,
            config_digest=trained[0],
            finished=training.finished,
            protocol=digest(training.protocols.get(self._objective, {})),
            is_main=training.workers.is_main,
            best_checkpoint=str(best.path) if best else None,
        )

    def report(
        self,
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        config_digest: str,
        is_main: bool,
        finished: bool = False,
        protocol: str = "",
        best_checkpoint: str | None = None,
    ) -> None:
        """Send one report. Every worker of the run calls it equally often."""
        value = metrics[self._objective]
        report: Report = {
            "epoch": epoch,
            "step": step,
            # Schedulers and searchers compare numbers; what is not a number is the worst of them.
            "objective": float(value) if math.isfinite(value) else self._worst,
            "metrics": {name: float(number) for name, number in metrics.items() if math.isfinite(number)},
            "config_digest": config_digest,
            "finished": finished,  # no epoch comes after this one
            "protocol": protocol,
            "best_checkpoint": best_checkpoint,
            "run_id": self._run_id,
            "time": time.time(),
        }
        if is_main:
            write_json(self._run_dir / REPORT, report)
        self._send(report)


def train_worker(loop_config: Mapping[str, Any]) -> dict[str, Any]:
    """The train function. ``loop_config``: ``spec`` (:class:`RunSpec`) and ``send`` (where reports go).

    Returns:
        What the training left: metrics, steps, epochs, checkpoints; the same on every worker.

    Raises:
        UserError: another process trains this run, and goes on doing so.
    """
    import torch

    give_back()  # not at a training's end: one that is ended by an exception is held by it until then
    spec: RunSpec = loop_config["spec"]
    config = experiment_from(spec.experiment)
    torch.set_num_threads(max(1, int(config.resources.cpus_per_worker)))
    workers = _workers(spec, config.resources.gpus_per_worker)
    reporter = Reporter(spec, config.eval.metric, config.eval.mode, loop_config["send"])
    callbacks: list[Callback] = [ProgressWriter(), reporter]
    with contextlib.ExitStack() as stack:
        if workers.is_main:
            lease = stack.enter_context(hold(Path(spec.run_dir), TRAINING, patience_s=_LEASE_PATIENCE_S))
            callbacks += [LeaseGuard(lease), *_recording(spec)]
        result = dict(spec.program.train(RunContext(spec, config, workers, callbacks)))
        if workers.is_main:
            write_json(Path(spec.run_dir) / RESULT, result)
    return result


def _recording(spec: RunSpec) -> list[Callback]:
    target = spec.tracking
    if target is None:
        return []
    from sensorlab.engine.callbacks.tracking import Tracking
    from sensorlab.runs.recorder import RunRecorder

    recorder = RunRecorder(target.uri, target.run_id, Path(spec.run_dir) / "recording")
    code_root = Path(target.code_root) if target.code_root else None
    dataset = Path(spec.dataset) if spec.dataset else None
    return [
        Tracking(recorder, params=target.params, log_scaled=target.log_scaled, code_root=code_root, dataset=dataset)
    ]


def _workers(spec: RunSpec, gpus: float) -> WorkerGroup:
    """This process's place in its group, on the device that the run has reserved.

    Without a reserved GPU that is the CPU, also where CUDA is visible: another run may hold the GPU, and the process
    group of such workers exchanges CPU tensors.

    Raises:
        UserError: a GPU is reserved, but PyTorch sees none here.
    """
    import torch
    import torch.distributed as dist

    from sensorlab.engine.workers import WorkerGroup

    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if spec.in_process and world_size != 1:
        raise RuntimeError("an in-process run cannot be part of a process group")
    if gpus == 0:
        return WorkerGroup(rank, world_size, torch.device("cpu"))
    if not torch.cuda.is_available():
        raise UserError(
            f"resources.gpus_per_worker is {gpus:g}, but PyTorch sees no GPU in the training process on "
            f"{socket.gethostname()} (torch.cuda.is_available() is false): check the driver, PyTorch's CUDA build and "
            "CUDA_VISIBLE_DEVICES there, or set resources.gpus_per_worker=0 to train on the CPU"
        )
    return WorkerGroup(rank, world_size, torch.device("cuda", torch.cuda.current_device()))


def send_to_tune(report: Report) -> None:
    """Report from a trial that trains in its own process. Returns when the scheduler lets the trial go on; otherwise
    it raises ``SystemExit`` here, which unwinds the loop and closes the run."""
    from ray import tune

    tune.report(dict(report))


def send_to_train(report: Report) -> None:
    """Report from a worker group; Ray Train's controller passes it on."""
    import ray.train

    ray.train.report(dict(report))


def keep_report(report: Report) -> None:
    """For a single run in the driver: ``report.json`` is all that is needed."""


def user_error_in(error: BaseException | None) -> str | None:
    """The message of a ``UserError`` (or of a divergence) that is wrapped in Ray's exceptions; ``None`` for bugs.

    Repeating such a run gives the same result, so it is not restarted.
    """
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, UserError):
            return str(current)
        if isinstance(current, FloatingPointError):
            return f"training diverged: {current}"
        waiting += [current.__cause__, current.__context__]
        waiting += [getattr(current, name, None) for name in ("cause", "controller_failure", "_base_exc")]
        waiting += list(getattr(current, "worker_failures", {}).values())
    return None
