"""Synchronised batch norm: two workers normalise as one process does that sees both halves of the batch."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_workers import run_on_two_workers

from sensorlab.engine.sync_batchnorm import WorkerBatchNorm, _synchronised, convert_sync_batchnorm
from sensorlab.errors import UserError

SPLITS = {"equal": (4, 4), "unequal": (5, 3), "empty": (8, 0)}  # samples of each worker
LAYERS = {
    "plain": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "no_affine": lambda: nn.BatchNorm2d(3, affine=False),
    "no_statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "no_statistics_evaluated": lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(),
    "evaluated": lambda: nn.BatchNorm2d(3).eval(),
}


def layer(kind: str, dtype: torch.dtype) -> nn.Module:
    made = LAYERS[kind]()
    generator = torch.Generator().manual_seed(5)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return made.to(torch.promote_types(dtype, torch.float32))  # bfloat16 inputs meet float32 weights under autocast


def inputs(dtype: torch.dtype, shape: tuple[int, ...] = (8, 3, 4, 5)) -> tuple[Tensor, Tensor]:
    """Values far from zero, where sums of squares would lose digits, and the gradient that arrives at the output."""
    generator = torch.Generator().manual_seed(11)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (x * 3 + 50).to(dtype), grad.to(dtype)


def passes(norm: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Two passes, so that running statistics are used more than once; results of the last."""
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        norm.zero_grad()
        output = norm(leaf * 1.0)
        output.backward(grad)
    gradients = {f"grad/{name}": parameter.grad for name, parameter in norm.named_parameters()}
    return {"output": output.detach(), "grad/input": leaf.grad, **gradients, **norm.state_dict()}


def own_rows(value: Tensor, split: tuple[int, int], rank: int) -> Tensor:
    return value[: split[0]] if rank == 0 else value[split[0] :]


def cases() -> list[tuple[str, str, torch.dtype]]:
    shapes = [("plain", split) for split in SPLITS]
    shapes += [(kind, "unequal") for kind in LAYERS if kind not in ("plain", "no_statistics_evaluated")]
    return [(kind, split, dtype) for kind, split in shapes for dtype in (torch.float64, torch.float32)] + [
        ("plain", "unequal", torch.bfloat16)
    ]


def small_net() -> nn.Module:
    torch.manual_seed(1)
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), shared, nn.Flatten())


def train_net(network: nn.Module, model: nn.Module, x: Tensor, share: float = 1.0) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x).sigmoid().square().sum() * share).backward()
        optimizer.step()
    return model.state_dict()


def _on_worker(rank: int) -> dict[str, dict[str, Tensor]]:
    results = {}
    for kind, split, dtype in cases():
        x, grad = (own_rows(value, SPLITS[split], rank) for value in inputs(dtype))
        results[f"{kind} {split} {dtype}"] = passes(convert_sync_batchnorm(layer(kind, dtype)), x, grad)
    x, grad = inputs(torch.float32, (6, 3))
    results["vectors"] = passes(
        convert_sync_batchnorm(nn.BatchNorm1d(3)), own_rows(x, (2, 4), rank), own_rows(grad, (2, 4), rank)
    )
    model = convert_sync_batchnorm(small_net())
    x = own_rows(inputs(torch.float32)[0], (4, 4), rank)
    results["net"] = train_net(DistributedDataParallel(model), model, x, share=2.0)  # DDP averages, the loss is a sum
    if rank == 0:  # evaluation waits for nobody, also where it uses the statistics of the batch
        evaluated = layer("no_statistics_evaluated", torch.float32)
        expected = evaluated(inputs(torch.float32)[0])
        assert torch.equal(convert_sync_batchnorm(evaluated)(inputs(torch.float32)[0]), expected)
    with pytest.raises(ValueError, match="more than one value per channel over all workers"):
        convert_sync_batchnorm(nn.BatchNorm1d(3))(torch.zeros(1 - rank, 3))
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    if sys.platform != "linux":
        pytest.skip("gloo over loopback is tested on Linux")
    return run_on_two_workers(_on_worker, tmp_path_factory.mktemp("two"))


# Largest difference allowed, relative to the largest entry; about ten times the measured one (bfloat16: one rounding).
# The sums of halves are rounded otherwise than those of the whole.
TOLERANCE = {torch.float64: 5e-14, torch.float32: 5e-6, torch.bfloat16: 4e-3}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    if expected.numel():
        difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-3)
        assert difference <= tolerance, f"{what}: {difference:.2e}"


@pytest.mark.parametrize(("kind", "split", "dtype"), cases())
def test_outputs_gradients_and_statistics_are_those_of_the_joint_batch(two, kind, split, dtype):
    parts = [worker[f"{kind} {split} {dtype}"] for worker in two]
    expected = passes(layer(kind, dtype), *inputs(dtype))
    assert parts[0].keys() == expected.keys()
    for name, value in expected.items():
        if name in ("output", "grad/input"):
            actual = torch.cat([part[name] for part in parts])
        elif name.startswith("grad/"):
            actual = parts[0][name] + parts[1][name]
        else:
            assert torch.equal(parts[0][name], parts[1][name]), name
            actual = parts[0][name]
        assert_close(actual, value, TOLERANCE[dtype], name)


def test_batches_of_vectors(two):
    expected = passes(nn.BatchNorm1d(3), *inputs(torch.float32, (6, 3)))
    joint = torch.cat([worker["vectors"]["output"] for worker in two])
    assert_close(joint, expected["output"], 1e-5, "output")
    assert_close(two[1]["vectors"]["running_var"], expected["running_var"], 1e-5, "running_var")


def test_training_in_parallel_equals_training_on_the_joint_batch(two):
    model = small_net()
    expected = train_net(model, model, inputs(torch.float32)[0])
    assert list(expected) == list(two[0]["net"])
    for name, value in expected.items():
        assert torch.equal(two[0]["net"][name], two[1]["net"][name]), name
        assert_close(two[0]["net"][name], value, 1e-4, name)  # three steps of a steep loss
    alone = small_net()  # half of the batch gives other statistics, so the equality above is no accident
    half = train_net(alone, alone, inputs(torch.float32)[0][:4])
    assert not torch.allclose(half["1.running_mean"], expected["1.running_mean"], rtol=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_worker_computes_plain_batch_norm_to_the_bit(kind):
    expected = passes(layer(kind, torch.float32), *inputs(torch.float32))
    actual = passes(convert_sync_batchnorm(layer(kind, torch.float32)), *inputs(torch.float32))
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_names_and_tensors_stay_the_same(kind, on_gpu):
    plain = layer(kind, torch.float32)
    made = _synchronised(plain, on_gpu)
    assert isinstance(made, nn.SyncBatchNorm if on_gpu else WorkerBatchNorm)
    assert made.training == plain.training
    before, after = plain.state_dict(keep_vars=True), made.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[name] is before[name] for name in before)


def test_checkpoints_move_both_ways_and_copies_can_be_made():
    plain, converted = small_net(), convert_sync_batchnorm(small_net())
    assert sum(isinstance(module, WorkerBatchNorm) for module in converted.modules()) == 1
    assert converted[1] is converted[4]
    torch.nn.init.constant_(plain[1].running_var, 7.0)
    converted.load_state_dict(plain.state_dict())
    assert torch.equal(copy.deepcopy(converted)[4].running_var, torch.full((4,), 7.0))
    plain.load_state_dict(convert_sync_batchnorm(small_net()).state_dict())
    assert torch.equal(plain[1].running_var, torch.ones(4))


def test_converting_twice_changes_nothing_more():
    model = convert_sync_batchnorm(convert_sync_batchnorm(small_net()))
    assert isinstance(model[1], WorkerBatchNorm)
    assert list(model.state_dict()) == list(small_net().state_dict())


class DoublingNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "no batch norm"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), DoublingNorm(4)), "1 is a DoublingNorm, whose forward is its own"),
    ],
)
def test_models_that_cannot_be_synchronised_are_refused(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=message):
        convert_sync_batchnorm(model)
    assert [type(module) for module in model.modules()] == before


def test_inputs_without_channels_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"\(N, C, ...\), not \(3,\)"):
        WorkerBatchNorm(3)(torch.zeros(3))
