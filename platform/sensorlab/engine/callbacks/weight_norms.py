"""How large the weights and the gradients of each part of the model are."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sensorlab.engine.callbacks.base import Callback
from sensorlab.engine.duration import Every, Progress

if TYPE_CHECKING:
    from sensorlab.engine.meters import StepRecord
    from sensorlab.engine.training import Training

MAX_PARTS = 32
OTHER = "other"


def parts_of(model: nn.Module, max_parts: int = MAX_PARTS) -> dict[str, list[nn.Parameter]]:
    """The parameters by top-level module, in the model's order; below the top where all are in one module.

    Of more than ``max_parts`` modules, those after the first ``max_parts - 1`` are put together as ``other``.
    """
    parameters = list(model.named_parameters())
    depth, parts = 0, dict[str, list[nn.Parameter]]()
    while len(parts) < min(2, len(parameters)):
        depth += 1
        parts = {}
        for name, parameter in parameters:
            parts.setdefault(".".join(name.split(".")[:depth]), []).append(parameter)
    if len(parts) <= max_parts:
        return parts
    names = list(parts)
    kept = {name: parts[name] for name in names[: max_parts - 1]}
    return {**kept, OTHER: [parameter for name in names[max_parts - 1 :] for parameter in parts[name]]}


class WeightNorms(Callback):
    """Reports ``train/grad_norm/<module>`` and ``train/weight_norm/<module>`` (L2), every ``every``.

    The gradient is the one that the optimiser gets: exchanged between the workers, unscaled and clipped (what it was
    before clipping, over all parameters, is ``train/grad_norm``). A module without gradients, a frozen one for example,
    has no gradient norm. The weights are those after the update. In a step whose update was skipped nothing is
    reported. The device is waited for once per report and never in other steps.
    """

    priority = 30

    def __init__(self, every: Every) -> None:
        self._every = every
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._before = Progress(0, 0, 0)  # at the end of the step before
        self._gradients: dict[str, Tensor] = {}  # of this step, if it reports
        self._hook: Any = None

    def on_fit_start(self, training: Training) -> None:
        self._parts = parts_of(training.model)
        self._before = _progress(training)
        # Gradients are gone after the step, so they are read where the optimiser begins.
        self._hook = training.optimizer.register_step_pre_hook(functools.partial(self._read_gradients, training))

    def _read_gradients(self, training: Training, *_: Any) -> None:
        if self._every.passed(self._before, _progress(training, steps=1)):
            gradients = {
                name: [parameter.grad for parameter in parameters if parameter.grad is not None]
                for name, parameters in self._parts.items()
            }
            self._gradients = {name: _norm(tensors) for name, tensors in gradients.items() if tensors}

    def on_step_end(self, training: Training, record: StepRecord) -> None:
        self._before = _progress(training)
        if not self._gradients:
            return
        weights = {name: _norm([p.detach() for p in parameters]) for name, parameters in self._parts.items()}
        named = {f"train/grad_norm/{name}": norm for name, norm in self._gradients.items()}
        named |= {f"train/weight_norm/{name}": norm for name, norm in weights.items()}
        self._gradients = {}
        values = torch.stack(list(named.values())).tolist()
        training.publish(dict(zip(named, values, strict=True)))

    def on_fit_end(self, training: Training) -> None:
        self._remove_hook()

    def on_error(self, training: Training, error: BaseException) -> None:
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm over all elements, float32, on their device."""
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]))


def _progress(training: Training, steps: int = 0) -> Progress:
    """How far training is, ``steps`` steps counted as done beyond the cursor's; the last step of an epoch ends it."""
    now, batch = training.progress, training.cursor.batch
    is_last = training.accumulation.passes_from(now.epochs, batch) == 0
    left = (training.batches_per_epoch - batch) * training.config.data.global_batch if is_last else 0
    return Progress(now.epochs + is_last, now.steps + steps, now.samples + left)
