"""``torch.compile`` as an option that never stops a training: what cannot be compiled runs as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.utils import counters

from sensorlab.engine.no_trace import no_trace
from sensorlab.engine.workers import WorkerGroup

logger = logging.getLogger(__name__)


def compile_network(
    network: nn.Module, try_batch: Callable[[], object], workers: WorkerGroup, backend: str = "inductor"
) -> str | None:
    """Compile ``network`` in place, or leave it as it was and say why.

    Compiling happens at the first batch of a size, so batches are tried; that leaves no trace in weights, buffers,
    gradients or random streams. The module stays the same object: the names of its parameters do not change, and a
    wrapper for data parallelism that holds it calls the compiled code. Collective: either all workers compile or none.

    A failure that comes later, when an input size is compiled that was not tried, is not caught.

    Args:
        network: without its wrapper for data parallelism.
        try_batch: forward and backward passes as training makes them, through the wrapper if there is one. After a
            failure that wrapper may wait for gradients that never came: wrap anew.
        backend: of ``torch.compile``.

    Returns:
        ``None`` if the network is compiled, else one sentence with the reason.
    """
    if workers.world_size > 1:
        # A host without a C++ compiler must not leave the others waiting for its gradients.
        reason = _agreed(_failure(lambda: _probe(workers.device, backend)), workers)
        if reason:
            return reason
    with no_trace(network, workers.device):
        reason = _agreed(_failure(lambda: _compile(network, try_batch, backend)), workers)
    if reason:
        network._compiled_call_impl = None  # the counterpart of Module.compile that torch does not offer
        torch.compiler.reset()
    return reason


def _compile(network: nn.Module, try_batch: Callable[[], object], backend: str) -> None:
    torch.compiler.reset()  # code that an earlier training of this process compiled counts towards torch's limits
    network.compile(backend=backend)
    counters["stats"].pop("unique_graphs", None)
    try_batch()
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("no part of the network became a graph")


def _probe(device: torch.device, backend: str) -> None:
    x = torch.ones(2, device=device, requires_grad=True)
    torch.compile(lambda x: (x * x).sum(), backend=backend)(x).backward()


def _failure(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # whatever a compiler may raise; an error of the network comes again without it
        logger.debug("torch.compile failed", exc_info=error)
        return _reason(error)
    return None


def _agreed(reason: str | None, workers: WorkerGroup) -> str | None:
    """The first worker's failure on all workers."""
    for rank, found in enumerate(workers.gather(reason)):
        if found:
            where = f" on worker {rank}" if workers.world_size > 1 else ""
            return f"train.compile: torch.compile failed{where}, training goes on without it: {found}"
    return None


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause; the compiler's own errors wrap it in advice for its developers."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
