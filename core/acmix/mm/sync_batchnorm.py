"""Batch statistics over all processes without GPUs, for which torch has none."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """Normalises maps (batch, channels, ...) by the statistics of all processes.

    Processes may have batches of different sizes. It is no ``nn.SyncBatchNorm``, as
    ``DistributedDataParallel`` refuses those where there is no GPU.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; by the running statistics out of training."""
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        own_count = input.new_tensor([input.numel() / input.shape[1]])
        sums = _SumOverProcesses.apply(torch.cat([input.sum(dims), own_count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = input - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, with the gradient that they all have in it."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, grad)


def synchronise(model: nn.Module, ordinary: bool) -> None:
    """Let the batch norms of a model on the CPU share their statistics, in place.

    Args:
        model: The model.
        ordinary: Whether to take ordinary batch norms beside ``nn.SyncBatchNorm``.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm if ordinary else nn.SyncBatchNorm):
            module.__class__ = CPUSyncBatchNorm  # all have the same parameters and settings
