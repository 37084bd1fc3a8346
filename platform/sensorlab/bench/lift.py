"""Voxel lifting, forward and backward: the sparse plan against the dense sampling formulation.

Both sides run on the same inputs in one call. The sparse side pays for building its plan and the transpose in every
repetition, as training with a new crop per sample does. Wall time is the measure; CPU time stands beside it because
other processes disturb it less.

Peak memory is measured apart, each side in a fresh process: the highest resident memory (on CUDA: allocated memory)
above what the process held with its inputs in place. In these processes the C library returns freed arrays at once, so
that resident memory means live arrays; that costs time, which is why time is measured in processes without it.

The gradient that arrives from above has the memory format of the side's own volume, as it has when the consumer keeps
the format; ``--contiguous-gradient`` makes the sparse side convert it first.

The dense formulation is the oracle of the unit tests too: project every voxel centre into every camera,
``F.grid_sample`` every feature map there, mask, average over the cameras.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorlab.bench.memory import PeakMemory
from sensorlab.geometry.bev_grid import BEVGrid
from sensorlab.geometry.poses import inverse_rigid, transform_points
from sensorlab.models.ops.lift import Mean, Sampling, build_lift_plans, lift

NAME = "lift"
IMAGE_SIZE = (224, 400)
SMALL = {"cells": [50, 4, 50], "channels": 32, "repeats": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, nargs=3, default=[200, 8, 200], metavar=("Z", "Y", "X"))
    parser.add_argument("--cameras", type=int, default=6, help="cameras of the rig, 1 to 6 (default 6)")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--feature-size", type=int, nargs=2, default=[28, 50], metavar=("HF", "WF"))
    parser.add_argument("--batch", type=int, default=1, help="samples, each with its own crop (default 1)")
    parser.add_argument("--sampling", choices=get_args(Sampling), default="centered")
    parser.add_argument("--mean", choices=get_args(Mean), default=None, help="default: the rule of the sampling")
    parser.add_argument("--contiguous-gradient", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of the sparse side; the dense has 2")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="a 50x4x50 grid with 32 channels: seconds, for tests")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides. Keys: parameters, hardware, dense and sparse (seconds, peak MB), ratios, differences."""
    own = argparse.ArgumentParser()
    add_arguments(own)
    parameters = {key: getattr(args, key) for key in vars(own.parse_args([])) if key != "small"}
    if args.small:
        parameters.update(SMALL)
    dense, sparse = (_in_fresh_process("time", side, parameters) for side in ("dense", "sparse"))
    dense.update(_in_fresh_process("memory", "dense", parameters))
    sparse.update(_in_fresh_process("memory", "sparse", parameters))
    hardware = sparse.pop("hardware")
    difference = dense.pop("difference")
    return {
        "bench": NAME,
        "parameters": parameters,
        "hardware": hardware,
        "dense": dense,
        "sparse": sparse,
        "times_faster": dense["seconds"] / sparse["seconds"],
        "times_less_cpu": dense["cpu_seconds"] / sparse["cpu_seconds"],
        "memory_fraction": sparse["peak_mb"] / dense["peak_mb"],
        "max_abs_difference": difference,
        "bar": {"times_faster": ">= 10", "memory_fraction": "<= 0.1", "max_abs_difference": "<= 1e-4"},
    }


def dense_lift(
    features: Tensor,
    intrinsics: Tensor,
    ref_from_camera: Tensor,
    grid: BEVGrid,
    image_size: tuple[int, int],
    sampling: Sampling = "centered",
    mean: Mean = "visible",
) -> Tensor:
    """The formulation of the original (``utils/vox.py``, ``nets/segnet.py``), with all sampling conventions.

    Args:
        features: (B, S, C, Hf, Wf).
        intrinsics: (B, S, 3, 3) pixels of images of ``image_size`` (H, W). The dtype of the matrices is that of the
            projection: float32 as published, or float64 for a reference without its rounding.
        ref_from_camera: (B, S, 4, 4), same dtype.
        grid, image_size, sampling, mean: as in :func:`sensorlab.models.ops.lift.build_lift_plan`.

    Returns:
        (B, C, Z, Y, X). Memory: several arrays of (B, S, C, Z, Y, X).
    """
    batch, cameras, channels, rows, columns = features.shape
    dtype = features.dtype
    x, y, visible = _dense_projection(intrinsics, ref_from_camera, grid, image_size, (rows, columns), sampling)
    if sampling == "legacy":
        x, y = x * (columns / (columns - 1)) - 0.5, y * (rows / (rows - 1)) - 0.5
    normalized = torch.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], -1).clamp(-2, 2).to(dtype)
    samples = F.grid_sample(features.flatten(0, 1), normalized.flatten(0, 1)[:, None], align_corners=False)
    samples = samples.view(batch, cameras, channels, -1) * visible[:, :, None]
    if mean == "nonzero":
        mask = (samples.abs() > 0).to(samples)
        volume = (samples * mask).sum(1) / (mask.sum(1) + 1e-6)
    else:
        volume = samples.sum(1) / visible.sum(1).clamp(min=1)[:, None]
    return volume.view(batch, channels, *grid.cells)


def _dense_projection(
    intrinsics: Tensor,
    ref_from_camera: Tensor,
    grid: BEVGrid,
    image_size: tuple[int, int],
    feature_size: tuple[int, int],
    sampling: Sampling,
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature x, y and visibility (B, S, Z * Y * X) of all voxels in all cameras."""
    centers = torch.as_tensor(grid.voxel_centers(), dtype=intrinsics.dtype, device=intrinsics.device).view(-1, 3)
    points = transform_points(inverse_rigid(ref_from_camera), centers)
    homogeneous = points @ intrinsics.transpose(-1, -2)
    depth = homogeneous[..., 2]
    u, v = (homogeneous[..., i] / depth.clamp(min=1e-6) for i in range(2))
    shift = 0.5 if sampling == "centered" else 0.0
    (rows, columns), (height, width) = feature_size, image_size
    x = (u + shift) * (columns / width) - shift
    y = (v + shift) * (rows / height) - shift
    visible = (x > -0.5) & (x < columns - 0.5) & (y > -0.5) & (y < rows - 0.5) & (depth > 0)
    return x, y, visible


def example_rig(batch: int, cameras: int) -> tuple[Tensor, Tensor]:
    """Intrinsics (B, S, 3, 3) at ``IMAGE_SIZE`` and ref_from_camera (B, S, 4, 4) of a rig like that of nuScenes.

    Five cameras of 64 degrees and one of 89 (1266 and 809 px at 1600x900) on a roof rack. Sample b is scaled and
    shifted a little, as by a crop.
    """
    yaws = (0.0, 55.0, 110.0, 180.0, -110.0, -55.0)[:cameras]  # to the right of the reference camera
    focals = (1266.0, 1266.0, 1266.0, 809.0, 1266.0, 1266.0)
    intrinsics, poses = torch.zeros(batch, cameras, 3, 3), torch.eye(4).repeat(batch, cameras, 1, 1)
    for s, yaw in enumerate(yaws):
        angle = math.radians(yaw)
        sin, cos = math.sin(angle), math.cos(angle)
        poses[:, s, :3, :3] = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        poses[:, s, :3, 3] = torch.tensor([0.6 * sin, 0.02 * s, 0.9 * cos - 0.9])
        for b in range(batch):
            focal = focals[s] / 4 * (1 + 0.07 * b)
            intrinsics[b, s] = torch.tensor([[focal, 0, 200.3 + 9 * b], [0, focal, 118.7 - 5 * b], [0, 0, 1]])
    return intrinsics, poses


def measure_time(side: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Seconds of forward + backward of one side in this process; the dense side also compares the two."""
    device, problem = _prepared(side, parameters)
    result = _repetition(side, problem)
    wall, cpu = [], []
    for _ in range(parameters["repeats"] if side == "sparse" else 2):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        _repetition(side, problem)
        _synchronize(device)
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - cpu_begin)
    report: dict[str, Any] = {
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "all_seconds": wall,
    }
    if side == "dense":
        report["difference"] = _difference(result, _repetition("sparse", problem))
    else:
        report["hardware"] = _hardware(device)
    return report


def measure_memory(side: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Peak memory in MiB of one repetition of one side in this process."""
    device, problem = _prepared(side, parameters)
    with PeakMemory(device) as memory:
        _repetition(side, problem)
    return {"peak_mb": memory.peak_bytes / 2**20, "memory_measure": memory.measure}


def _prepared(side: str, parameters: dict[str, Any]) -> tuple[torch.device, _Problem]:
    """Inputs in place, and a repetition on a tiny grid done: loading code and starting threads is not measured."""
    if parameters["threads"]:
        torch.set_num_threads(parameters["threads"])
    device = torch.device(parameters["device"])
    _repetition(side, _problem({**parameters, "cells": [8, 2, 8]}, device))
    return device, _problem(parameters, device)


def _difference(dense: tuple[Tensor, Tensor], sparse: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Largest absolute differences; the gradient's also as a fraction of the largest gradient.

    A gradient is a sum over the hundreds of voxels that sample a pixel, so its rounding grows with it.
    """
    volume, gradient = (float((a - b).abs().max()) for a, b in zip(dense, sparse, strict=True))
    return {"volume": volume, "gradient": gradient, "gradient_relative": gradient / float(dense[1].abs().max())}


@dataclass(frozen=True)
class _Problem:
    """Inputs of both sides, and the functions from features to volumes."""

    features: Tensor  # (B, S, C, Hf, Wf)
    cotangents: dict[str, Tensor]  # (B, C, Z, Y, X), equal values: the gradients that arrive from above
    sides: dict[str, Callable[[Tensor], Tensor]]


def _problem(parameters: dict[str, Any], device: torch.device) -> _Problem:
    grid = BEVGrid(cells=tuple(parameters["cells"]))
    batch, cameras, channels = parameters["batch"], parameters["cameras"], parameters["channels"]
    rows, columns = parameters["feature_size"]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((batch, cameras, channels, rows, columns), generator=generator).to(device).requires_grad_()
    cotangent = torch.randn((batch, channels, *grid.cells), generator=generator).to(device)
    # float64 projection on both sides, so that the difference shows the lifting and not the rounding of pixels.
    intrinsics, poses = (m.to(device, torch.float64) for m in example_rig(batch, cameras))
    sampling = parameters["sampling"]
    mean: Mean = parameters["mean"] or ("nonzero" if sampling == "legacy" else "visible")

    def sparse(pixels: Tensor) -> Tensor:
        return lift(pixels, build_lift_plans(grid, intrinsics, poses, IMAGE_SIZE, (rows, columns), sampling, mean))

    def dense(pixels: Tensor) -> Tensor:
        return dense_lift(pixels, intrinsics, poses, grid, IMAGE_SIZE, sampling, mean)

    in_sparse_format = cotangent if parameters["contiguous_gradient"] else as_lifted(cotangent)
    return _Problem(features, {"sparse": in_sparse_format, "dense": cotangent}, {"sparse": sparse, "dense": dense})


def as_lifted(volume: Tensor) -> Tensor:
    """The same (B, C, Z, Y, X) values in the memory order of ``lift``: (B, Z, X, Y, C)."""
    return volume.permute(0, 2, 4, 3, 1).contiguous().permute(0, 4, 1, 3, 2)


def _repetition(side: str, problem: _Problem) -> tuple[Tensor, Tensor]:
    """Volume and gradient of the features."""
    volume = problem.sides[side](problem.features)
    (grad,) = torch.autograd.grad(volume, problem.features, problem.cotangents[side])
    return volume.detach(), grad


def _in_fresh_process(quantity: str, side: str, parameters: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sensorlab.bench.lift", quantity, side, json.dumps(parameters)]
    environment = dict(os.environ)
    if quantity == "memory":
        # glibc otherwise keeps freed arrays of up to 32 MB for reuse; 1 MiB here means that they are unmapped.
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode != 0:
        raise RuntimeError(f"the {side} side failed with code {finished.returncode}:\n{finished.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return report


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _hardware(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    measure = {"time": measure_time, "memory": measure_memory}[sys.argv[1]]
    print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))))
