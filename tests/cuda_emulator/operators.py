"""The CUDA kernels as differentiable functions, and the same functions in plain torch."""

import torch
import torch.nn.functional as F

from acmix import reference
from acmix.backends import cuda_backend
from acmix.geometry import can_reflect


def _differentiable(forward, backward, inputs, saved):
    """A function of ``inputs`` tensors; ``saved`` outputs go to the backward, one is returned."""

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            tensors, ctx.options = args[:inputs], args[inputs:]
            outputs = forward(*tensors, *ctx.options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            ctx.save_for_backward(*tensors, *outputs[:saved])
            return outputs[0]

        @staticmethod
        def backward(ctx, grad):
            grads = backward(grad, *ctx.saved_tensors, *ctx.options)
            return (*grads, *(None for _ in ctx.options))

    return Operator.apply


_attention = _differentiable(
    cuda_backend.attention_forward, cuda_backend.attention_backward, inputs=3, saved=2
)
_aggregation = _differentiable(
    cuda_backend.aggregation_forward, cuda_backend.aggregation_backward, inputs=2, saved=0
)
_subtraction = _differentiable(
    cuda_backend.subtraction_forward, cuda_backend.subtraction_backward, inputs=2, saved=0
)


def attention(q, k, v, *, kernel_size=7, stride=1, dilation=1):
    return _attention(q, k, v, kernel_size, stride, dilation)


def aggregation(v, w, *, kernel_size, stride=1, dilation=1, reflect=True):
    return _aggregation(v, w, kernel_size, stride, dilation, reflect)


def subtraction(a, b, *, kernel_size, stride=1, dilation=1, reflect=True):
    return _subtraction(a, b, kernel_size, stride, dilation, reflect)


def plain_attention(q, k, v, **options):
    return reference.sliding_window_attention(q, k, v, **options)


def plain_aggregation(v, w, *, kernel_size, stride=1, dilation=1, reflect=True):
    shared = w[:, torch.arange(v.shape[1]) % w.shape[1]]
    windows = _windows(v, kernel_size, stride, dilation, reflect)
    return sum(shared[:, :, o] * window for o, window in enumerate(windows))


def plain_subtraction(a, b, *, kernel_size, stride=1, dilation=1, reflect=True):
    windows = _windows(b, kernel_size, stride, dilation, reflect)
    return torch.stack([a[..., ::stride, ::stride] - window for window in windows], dim=2)


def _windows(x, kernel_size, stride, dilation, reflect):
    """The map under each offset of the window, k² maps of the output's size."""
    height, width = x.shape[-2:]
    pad = dilation * (kernel_size // 2)
    padded = F.pad(x, (pad,) * 4, mode="reflect" if reflect else "constant")
    offsets = [(i * dilation, j * dilation) for i in range(kernel_size) for j in range(kernel_size)]
    return [padded[..., i : i + height : stride, j : j + width : stride] for i, j in offsets]


def maps(*shapes, dtype=torch.float64, device="cpu"):
    """Random maps that depend on their shapes alone."""
    generator = torch.Generator().manual_seed(sum(sum(shape) for shape in shapes))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes
    ]


def aggregation_maps(batch, channels, groups, size, kernel_size, stride, **options):
    out_size = [-(-n // stride) for n in size]
    return maps((batch, channels, *size), (batch, groups, kernel_size**2, *out_size), **options)


def reflects(size, kernel_size, dilation):
    return can_reflect(*size, dilation * (kernel_size // 2))
