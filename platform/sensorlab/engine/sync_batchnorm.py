"""Batch normalisation over the batches of all workers, on GPUs and on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sensorlab.errors import UserError


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Let every batch norm of ``model`` normalise with the statistics of the batches of all workers.

    To be called before the model is wrapped for data parallelism. Parameters and buffers stay the same objects under
    the same names, so checkpoints move freely between this and plain batch norm, and between numbers of workers.
    Layers on a GPU become ``nn.SyncBatchNorm``; it refuses CPUs, where :class:`WorkerBatchNorm` takes its place.

    Returns:
        ``model``, changed in place; a new module only if ``model`` itself is a batch norm.

    Raises:
        UserError: there is no batch norm, or one is of a class that computes something of its own.
    """
    synchronised: dict[nn.Module, nn.Module] = {}  # by its original: a layer that is used twice stays one layer
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward, WorkerBatchNorm.forward):
            raise UserError(
                f"train.sync_batchnorm: {name or 'the model'} is a {type(layer).__name__}, whose forward is its own; "
                "it cannot be computed over all workers"
            )
        synchronised[layer] = _synchronised(layer)
    if not synchronised:
        raise UserError("train.sync_batchnorm: the model has no batch norm; leave the option out")
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in synchronised:
                module._modules[name] = synchronised[child]
    return synchronised.get(model, model)


def _synchronised(layer: _BatchNorm, on_gpu: bool | None = None) -> _BatchNorm:
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    on_gpu = any(tensor.is_cuda for tensor in tensors) if on_gpu is None else on_gpu
    kind = nn.SyncBatchNorm if on_gpu else WorkerBatchNorm
    made = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):  # None where there is none
        setattr(made, name, getattr(layer, name))
    return made.train(layer.training)


class WorkerBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) inputs over all workers of the default process group, whatever their device.

    The N of the workers may differ, and be 0. Gradients of the input are exact for the sum of all workers' losses;
    those of ``weight`` and ``bias`` are this worker's share, which data parallelism averages with all others. In
    evaluation mode, and with one worker, it is plain batch norm, to the bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; collective in training mode.

        Raises:
            ValueError: a batch without a channel dimension, or (in training) of one value per channel in all.
        """
        # In evaluation mode workers may have unequal numbers of batches: they must not wait for each other.
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        return _over_workers(self, input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs inputs (N, C, ...), not {tuple(input.shape)}")


@torch.compiler.disable  # collectives in the middle of a graph
def _over_workers(layer: WorkerBatchNorm, input: Tensor) -> Tensor:
    output, mean, variance, count = _NormaliseOverWorkers.apply(input, layer.weight, layer.bias, layer.eps)
    if layer.running_mean is not None:
        _update_statistics(layer, mean, variance * (count / (count - 1)))
    return output


@torch.no_grad()
def _update_statistics(layer: WorkerBatchNorm, mean: Tensor, unbiased_variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    weight = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
    layer.running_var.lerp_(unbiased_variance.to(layer.running_var.dtype), weight)


class _NormaliseOverWorkers(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` with the statistics of all workers.

    Each worker sums over its own values in float32 (float64 inputs: float64). The sums travel as float64, so that
    counts are exact, and are merged in rank order: all workers get the same bits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        mean, variance, count = _joint_statistics(x.to(_accumulator(x)))
        if count < 2:
            raise ValueError(f"batch norm needs more than one value per channel over all workers, got {tuple(x.shape)}")
        scale = torch.rsqrt(variance + eps)
        output = _normalised(x, mean, scale)
        if weight is not None:
            output = output * _spread(weight, x)
        if bias is not None:
            output = output + _spread(bias, x)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.count = count
        ctx.mark_non_differentiable(mean, variance)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        normalised = _normalised(x, mean, scale)
        grad = grad.to(normalised.dtype)
        grad_bias = grad.sum(_all_but_channel(grad))
        grad_weight = (grad * normalised).sum(_all_but_channel(grad))
        grad_x = None
        if ctx.needs_input_grad[0]:  # the same on all workers: they run the same graph
            sums = torch.stack((grad_bias, grad_weight)).double()
            dist.all_reduce(sums)
            mean_grad, mean_product = (sums / ctx.count).to(grad.dtype)
            grad_x = grad - _spread(mean_grad, x) - normalised * _spread(mean_product, x)
            grad_x = grad_x * _spread(scale.to(grad.dtype) if weight is None else scale.to(grad.dtype) * weight, x)
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            None,
        )


def _normalised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    x = x.to(_accumulator(x))
    return (x - _spread(mean.to(x.dtype), x)) * _spread(scale.to(x.dtype), x)


def _joint_statistics(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), biased variance (C,), both float64, and the number of values per channel, over all workers."""
    dims = _all_but_channel(values)
    count = values.numel() // values.shape[1]
    mean = values.sum(dims) / max(count, 1)
    deviation = (values - _spread(mean, values)).square().sum(dims)
    own = torch.cat((mean.double(), deviation.double(), mean.new_tensor([count], dtype=torch.float64)))
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    parts = torch.stack(gathered)
    means, deviations = parts[:, :-1].chunk(2, dim=1)
    counts = parts[:, -1:]
    total = counts.sum()
    joint = (means * counts).sum(0) / total
    variance = (deviations + counts * (means - joint).square()).sum(0) / total
    return joint, variance, float(total)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _all_but_channel(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _spread(per_channel: Tensor, like: Tensor) -> Tensor:
    """(C,) to (1, C, 1, ...) of as many dimensions as ``like``."""
    return per_channel.view(1, -1, *(1 for _ in range(like.dim() - 2)))
