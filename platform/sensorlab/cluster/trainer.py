"""One training run as a Ray Train ``TorchTrainer``: in this process, or on a group of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sensorlab.cluster.preflight import GB, TRIAL_DRIVER_CPUS, TRIAL_DRIVER_MEMORY, WORKER_MEMORY, Demand, Share
from sensorlab.cluster.worker import Report, RunSpec, send_to_train, train_worker, user_error_in
from sensorlab.errors import UserError
from sensorlab.experiment import ExperimentConfig, ResourcesConfig, experiment_from

CONTROLLER_FAILURES = 3  # attempts to start a worker group, 60 s each; Ray's default is to try forever
PREEMPTIONS = 16
_COLLECTIVE_TIMEOUT_S = 1800


def trains_in_process(resources: ResourcesConfig, *, in_sweep: bool, local: bool) -> bool:
    """Whether a run of these resources needs no worker group: 0.1 s instead of about 10 s to start.

    The process that would train must own what the run needs: a trial of a sweep is placed by Ray, and a local cluster
    is this process's own machine; but the driver of another cluster holds none of that cluster's resources, and may
    run on a head or a laptop that is not to train.

    Args:
        resources: of the run.
        in_sweep: the run is a trial of a sweep.
        local: the cluster was started by this process.
    """
    return resources.in_process and resources.num_workers == 1 and (in_sweep or local)


def demand(config: ExperimentConfig, in_sweep: bool, object_store: int = 0) -> Demand:
    """What one run of this configuration occupies on the cluster; ``object_store``: bytes that its streams need."""
    resources = config.resources
    memory = resources.memory_gb
    alone = trains_in_process(resources, in_sweep=in_sweep, local=False)
    return Demand(
        workers=resources.num_workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        data_cpus=resources.data_cpus,
        driver_cpus=TRIAL_DRIVER_CPUS if in_sweep and not alone else 0.0,
        memory_per_worker=WORKER_MEMORY if memory is None else memory * GB,
        driver_memory=TRIAL_DRIVER_MEMORY if in_sweep and not alone else 0.0,
        is_memory_known=memory is not None,
        object_store=object_store,
    )


def trial_resources(resources: ResourcesConfig, share: Share) -> dict[str, float]:
    """What Tune reserves for the process of a trial. Ray Train reserves the workers of a group when it starts them."""
    if trains_in_process(resources, in_sweep=True, local=False):
        return worker_resources(resources, share)
    needs = {"CPU": TRIAL_DRIVER_CPUS, "memory": TRIAL_DRIVER_MEMORY if share.memory else 0}
    return {name: amount for name, amount in needs.items() if amount}


def worker_resources(resources: ResourcesConfig, share: Share) -> dict[str, float]:
    """What a training process reserves: CPUs, GPUs, and bytes of memory."""
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker, "memory": share.memory}
    return {name: amount for name, amount in needs.items() if amount}


def fit_run(
    spec: RunSpec,
    *,
    name: str,
    send: Callable[[Report], None],
    max_failures: int,
) -> dict[str, Any]:
    """Train ``spec`` to its end and return what the train function returned.

    Recovery does not depend on what Ray keeps: workers that start again continue from the engine's own latest
    checkpoint in ``spec.run_dir``. ``name`` must therefore be the same in every attempt of a run, and no other run's.

    Args:
        spec: the run.
        name: name of the run for Ray Train.
        send: takes each report, in this process. What it raises, and an interrupt, ends the workers.
        max_failures: restarts of the worker group after crashes of workers.

    Raises:
        UserError: the run failed because of something that the user must change.
    """
    if spec.in_process:
        return _fit(spec, name, send, max_failures, ())
    from sensorlab.cluster.relay import train_group

    return train_group(lambda callbacks: _fit(spec, name, send_to_train, max_failures, callbacks), send)


def _fit(
    spec: RunSpec, name: str, send: Callable[[Report], None], max_failures: int, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """``send`` is called in the workers, ``callbacks`` in the process of Ray Train's controller."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from sensorlab.data.ray_stream import train_data_config

    resources = experiment_from(spec.experiment).resources
    if spec.in_process:
        scaling = ScalingConfig(num_workers=0)
    else:
        scaling = ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources, spec.share),
        )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"spec": spec, "send": send},
        torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=scaling,
        run_config=RunConfig(
            name=name,
            storage_path=str(Path(spec.run_dir) / "ray_train"),
            failure_config=FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=CONTROLLER_FAILURES,
                max_preemption_failures=PREEMPTIONS,
            ),
            callbacks=[*callbacks, _stop_on_user_error()],
        ),
        datasets=dict(spec.program.datasets(spec)),
        dataset_config=train_data_config(spec.share.object_store),
    )
    try:
        return dict(trainer.fit().return_value or {})
    except Exception as error:
        message = user_error_in(error)
        if message is None:
            raise
        raise UserError(message) from error


def _stop_on_user_error() -> Any:
    """A Train callback that ends the run at once when a worker says that the user must change something."""
    from ray.train import UserCallback

    class StopOnUserError(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                message = user_error_in(error)
                if message is not None:
                    raise UserError(message)  # an error of the controller itself is not retried

    return StopOnUserError()
