"""torch.compile with its way back: real backends, backends that fail, and a missing C++ compiler."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_workers import run_on_two_workers

from sensorlab.engine.compilation import compile_network
from sensorlab.engine.ema import EmaConfig, ExponentialAverage
from sensorlab.engine.freeze import FreezeRule, Freezing
from sensorlab.engine.sync_batchnorm import convert_sync_batchnorm
from sensorlab.engine.workers import WorkerGroup

ONE = WorkerGroup()


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).square().mean()


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def batch(step: int = 0) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


def attempt(network: nn.Module) -> Callable[[], None]:
    return lambda: network(batch()).backward()


def train(network: nn.Module, steps: int = 3) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        network(batch(step)).backward()
        optimizer.step()
    return network.state_dict()


def refusing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
    raise RuntimeError("operation not supported\nadvice for developers")


def failing_in_backward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    if all(value.dim() < 2 for value in inputs):  # not a network: the probe that several workers try first
        return graph

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("no kernel for the backward pass")

    return lambda *arguments: tuple(Broken.apply(x) for x in graph(*arguments))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (refusing, "RuntimeError: operation not supported$"),
        (failing_in_backward, "ValueError: no kernel for the backward pass"),
        ("no_such_backend", "Invalid backend: 'no_such_backend'"),
    ],
)
def test_a_failure_is_explained_and_leaves_everything_as_it_was(backend, reason):
    network = net()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    message = compile_network(network, attempt(network), ONE, backend)
    assert message.startswith("train.compile: torch.compile failed, training goes on without it: ")
    assert re.search(reason, message), message
    assert_equal(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert_equal(train(network), train(net()))


def test_a_compiled_network_keeps_its_names_and_state():
    network = net()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert compile_network(network, attempt(network), ONE, "aot_eager") is None
    assert_equal(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert_equal(train(network), train(net()))  # aot_eager runs the same kernels


def test_the_compiled_code_is_what_runs():
    calls = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        def run(*arguments: Tensor) -> object:
            calls.append(1)
            return graph(*arguments)

        return run

    network = net()
    assert compile_network(network, attempt(network), ONE, counting) is None
    tried = len(calls)
    train(network)
    assert tried >= 1
    assert len(calls) == tried + 3
    again = net()  # a second training of the same process
    assert compile_network(again, attempt(again), ONE, counting) is None


def test_nothing_to_compile_counts_as_a_failure():
    """A forward of torch's own classes is not looked at."""
    network = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    message = compile_network(network, lambda: network(batch()).sum().backward(), ONE, "eager")
    assert "no part of the network became a graph" in message


def test_an_interruption_is_not_swallowed():
    network = net()
    before = copy.deepcopy(network.state_dict())

    def interrupted() -> None:
        network(batch())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_network(network, interrupted, ONE, "eager")
    assert_equal(network.state_dict(), before)


def test_freezing_and_averaging_reach_compiled_networks():
    network = net()
    freezing = Freezing(network, (FreezeRule(match=("head.*",), norm_statistics=True),))
    average = ExponentialAverage(network, EmaConfig())
    assert compile_network(network, attempt(network), ONE, "aot_eager") is None
    moved = []
    for frozen in (False, True, False):
        network.body[0].requires_grad_(not frozen)
        network(batch()).backward()
        moved.append(network.body[0].weight.grad is not None)
        network.zero_grad()
    assert moved == [True, False, True]
    assert network.head.weight.grad is None
    assert not freezing.apply(0)
    average.update(network)
    assert_equal(copy.deepcopy(network).state_dict(), network.state_dict())


def test_a_missing_cpp_compiler_is_named():
    config = pytest.importorskip("torch._inductor.config")
    network = net()
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        message = compile_network(network, attempt(network), ONE)
    assert re.search(r"InvalidCxxCompiler: No working C\+\+ compiler found.*no-such-compiler", message), message
    assert_equal(train(network), train(net()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_real_backend_computes_the_same_and_repeats_itself_bit_for_bit():
    results = []
    for _ in range(2):
        network = net()
        assert compile_network(network, attempt(network), ONE) is None
        results.append(copy.deepcopy(train(network)))
    assert_equal(*results)

    without_dropout = [net(), net()]  # compiled code draws its masks otherwise
    for network in without_dropout:
        network.body[3].p = 0.0
    assert compile_network(without_dropout[0], attempt(without_dropout[0]), ONE) is None
    compiled, expected = (train(network) for network in without_dropout)
    for name, value in expected.items():
        assert torch.allclose(compiled[name], value, rtol=1e-5, atol=1e-6), name  # fused sums are rounded otherwise


def _on_worker(rank: int) -> dict[str, object]:
    workers = WorkerGroup(rank, 2)
    plain = net()
    results: dict[str, object] = {
        "plain": copy.deepcopy(train_in_parallel(plain, DistributedDataParallel(plain), rank))
    }

    compiled = net()
    network = DistributedDataParallel(compiled)
    results["compiled message"] = compile_network(compiled, attempt(network), workers, "aot_eager")
    results["compiled"] = copy.deepcopy(train_in_parallel(compiled, network, rank))

    for name, backends in (("refused", ("aot_eager", refusing)), ("broken", (failing_in_backward,) * 2)):
        model = net()
        network = DistributedDataParallel(model)
        results[f"{name} message"] = compile_network(model, attempt(network), workers, backends[rank])
        network = DistributedDataParallel(model)  # the first may still wait for gradients
        results[name] = copy.deepcopy(train_in_parallel(model, network, rank))

    for name, compiles in (("synchronised plain", False), ("synchronised", True)):
        model = convert_sync_batchnorm(net())
        network = DistributedDataParallel(model)
        if compiles:
            results["synchronised message"] = compile_network(model, attempt(network), workers, "aot_eager")
        results[name] = copy.deepcopy(train_in_parallel(model, network, rank))
    return results


def train_in_parallel(model: nn.Module, network: nn.Module, rank: int) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(step)
        optimizer.zero_grad()
        network(batch(2 * step + rank)).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_workers_compile_together_or_not_at_all(tmp_path):
    workers = run_on_two_workers(_on_worker, tmp_path)
    for results in workers:
        assert results["compiled message"] is None
        assert "failed on worker 1, training goes on without it: RuntimeError: oper" in results["refused message"]
        assert "failed on worker 0, training goes on without it: ValueError: no k" in results["broken message"]
        assert results["synchronised message"] is None
        for name in ("compiled", "refused", "broken"):
            assert_equal(results[name], results["plain"])
        assert_equal(results["synchronised"], results["synchronised plain"])
    assert_equal(
        {name: value for name, value in workers[0]["plain"].items() if "running" not in name},
        {name: value for name, value in workers[1]["plain"].items() if "running" not in name},
    )
