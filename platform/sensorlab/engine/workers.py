"""The group of processes that train one model together, and what they exchange.

The engine knows ``torch.distributed`` only; whoever starts the processes (torchrun, Ray Train, a test) sets it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class WorkerGroup:
    """This process's place among the workers of a run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls) -> WorkerGroup:
        """The group that ``torch.distributed`` describes, with this process's GPU if there is one."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        return cls(rank, world_size, device)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Mean of each named number over the workers that have it: a batch may give one worker what others lack."""
        return {name: sum(found) / len(found) for name, found in self._by_name(values).items()}

    def average(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean of each tensor over the workers, which must have the same names and shapes; one exchange for all."""
        if self.world_size == 1 or not tensors:
            return dict(tensors)
        # In float64, where sums of counts are exact in any order.
        flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors.values()])
        dist.all_reduce(flat)
        parts = (flat / self.world_size).split([tensor.numel() for tensor in tensors.values()])
        return {
            name: part.reshape(tensor.shape).to(tensor.dtype)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }

    def max(self, values: Mapping[str, float]) -> dict[str, float]:
        """Maximum of each named number over the workers that have it."""
        return {name: max(found) for name, found in self._by_name(values).items()}

    def _by_name(self, values: Mapping[str, float]) -> dict[str, list[float]]:
        """The numbers of each name in rank order; the names in the order of the first worker that has them."""
        found: dict[str, list[float]] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                found.setdefault(name, []).append(value)
        return found

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every worker, in rank order, on every worker. Plain data only, between processes of one run."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give every worker the main worker's buffers, for example the running statistics of batch norm."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()


def average_each_gradient(bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average the gradients of a bucket over the workers, one by one: what data parallelism does with it as a hook.

    An all-reduce of more than two workers adds them up in an order that depends on the place in the buffer. Data
    parallelism arranges its buffers anew after the first step of a process, so a resumed run would round differently
    from one that was never interrupted. Parameter by parameter the places are always the same.
    """
    for gradient in bucket.gradients():
        gradient.div_(dist.get_world_size())
        dist.all_reduce(gradient)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
