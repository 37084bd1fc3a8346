"""The check before an update: a gradient that is not finite must not reach the weights."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sensorlab.engine.callbacks.sync_debug import syncs_allowed
from sensorlab.engine.meters import read_scalars
from sensorlab.experiment import TrainConfig

if TYPE_CHECKING:
    from sensorlab.engine.training import Cursor

logger = logging.getLogger(__name__)

LAG = 2  # steps after which a deferred check is read; the same on every worker, so that all stop at the same step


@dataclass(frozen=True)
class _Pending:
    where: str
    names: tuple[str, ...]
    values: list[Tensor]  # of the gradient norm, then of the losses; on the device
    norm: Tensor  # in memory of the host
    copied: torch.cuda.Event | None


class FiniteCheck:
    """Decides from the norm of the exchanged gradients whether a step updates the weights; all workers decide alike.

    On the CPU, and where steps may be skipped, the norm is read at once. On a GPU that would make every step wait for
    the device; with ``nonfinite: stop`` the check is deferred instead: the fused optimisers leave the weights alone
    where ``found_inf`` is set (the mechanism of ``GradScaler``), and the norm is read ``LAG`` steps later. Whoever is
    to use the weights (an evaluation, a checkpoint) calls :meth:`settle` first.

    Args:
        config: ``nonfinite`` and ``nonfinite_budget``.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.skipped = 0  # updates skipped because a gradient was not finite, in all attempts
        self.overflows = 0  # those of them that the scaler of fp16 answers for; they do not count above
        self._config = config
        self._model = model
        self._optimizer = optimizer
        self._scaler = scaler
        self._may_skip = config.nonfinite == "skip" or scaler.is_enabled()
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        self._is_deferred = on_gpu and config.nonfinite == "stop" and not scaler.is_enabled()
        self._pending: deque[_Pending] = deque()
        self._buffers: list[Tensor] = []

    def begin_step(self) -> None:
        """Note what a skipped step must put back: running statistics."""
        if self._may_skip:
            self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def allows_update(self, norm: Tensor, losses: Mapping[str, Tensor], cursor: Cursor) -> bool:
        """Whether to go on with the update. A step that is skipped leaves no trace: running statistics are put back.

        With fp16 an overflow is a normal event: the scaler lowers its scale, and the step is skipped without counting
        against the budget; but below a scale of 1 it is no overflow any more.

        Args:
            norm: 0-d, of the unscaled gradients.
            losses, cursor: for the message.

        Raises:
            FloatingPointError: the norm is not finite and the policy is to stop, or the budget is used up.
        """
        if self._is_deferred:
            self._defer(norm, losses, cursor)
            return True
        if math.isfinite(_read_now(norm) if norm.is_cuda else norm.item()):
            return True
        if self._may_skip:
            for buffer, before in zip(self._model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        if self._scaler.is_enabled() and self._scaler.get_scale() >= 1.0:
            self.overflows += 1
            return False
        self.skipped += 1
        message = _describe(_where(cursor), tuple(losses), [norm, *losses.values()])
        if self._config.nonfinite == "stop":
            raise FloatingPointError(f"not finite at {message}; the weights were not updated")
        if self.skipped > self._config.nonfinite_budget:
            raise FloatingPointError(
                f"more than train.nonfinite_budget={self._config.nonfinite_budget} steps were not finite; "
                f"last at {message}"
            )
        logger.warning("a step was skipped, it was not finite: %s", message)
        return False

    def metrics(self) -> dict[str, float]:
        """What was skipped so far, where steps may be skipped."""
        return {"perf/skipped_steps": float(self.skipped + self.overflows)} if self._may_skip else {}

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "overflows": self.overflows}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped, self.overflows = state["skipped"], state["overflows"]

    def settle(self) -> None:
        """Read all deferred checks. Raises ``FloatingPointError`` as above."""
        while self._pending:
            self._read(self._pending.popleft())

    def _defer(self, norm: Tensor, losses: Mapping[str, Tensor], cursor: Cursor) -> None:
        # Read by the fused kernels of torch.optim, which do nothing where it is 1.
        self._optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        copied = torch.cuda.Event() if norm.is_cuda else None
        on_host = norm.detach().to("cpu", non_blocking=True)
        if copied is not None:
            copied.record()
        self._pending.append(_Pending(_where(cursor), tuple(losses), [norm, *losses.values()], on_host, copied))
        if len(self._pending) > LAG:
            self._read(self._pending.popleft())

    def _read(self, pending: _Pending) -> None:
        if pending.copied is not None:
            pending.copied.synchronize()
        if not math.isfinite(pending.norm.item()):
            message = _describe(pending.where, pending.names, pending.values)
            raise FloatingPointError(f"not finite at {message}; its update was left out")


def _read_now(norm: Tensor) -> float:
    with syncs_allowed(norm.device):
        return norm.item()


def _where(cursor: Cursor) -> str:
    return f"epoch {cursor.epoch}, step {cursor.step}"


def _describe(where: str, names: Sequence[str], values: list[Tensor]) -> str:
    norm, *losses = read_scalars(values)
    listed = ", ".join(f"{name}={value:.4g}" for name, value in zip(names, losses, strict=True))
    return f"{where}: gradient norm {norm}, {listed}"
