"""Two real processes over gloo, for tests of what workers exchange."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_two_workers(function: Callable[..., Any], directory: Path, *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` in two processes that can talk to each other; what each returned, in rank order.

    Args:
        function: defined at the top of a module; returns tensors and plain containers.
        directory: where the processes leave their results.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, function, str(directory), arguments), nprocs=2)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _worker(rank: int, port: int, function: Callable[..., Any], directory: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(function(rank, *arguments), Path(directory) / f"rank{rank}.pt")
    dist.destroy_process_group()
