"""CPU kernels of the convolution path.

Maps are channels last for the kernels, whatever the memory format of the call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.backends.cpu.maps import Maps
from acmix.backends.folding import MAX_FOLDED_MAPS, is_folded
from acmix.geometry import output_size
from acmix.layout import (
    channels_last,
    computable,
    in_format_of,
    new_image,
    new_map,
    readable,
    sum_dtype,
)
from acmix.ops.convolution import convolution_path
from acmix.ops.registration import kernel

__all__ = ["convolution_path", "convolve", "convolve_backward"]

# Scratch of one unit of work, to stay in the second level cache.
_BAND_BYTES = 512 << 10
_VECTOR_BYTES = 64


@kernel(ops.convolution, "CPU")
def _forward(maps: Tensor, layer: Tensor, kernels: Tensor, stride: int) -> Tensor:
    x = readable(channels_last(maps))
    size = output_size(maps.shape[3:], stride)
    out = new_image((len(maps), len(kernels), *size), x.dtype)
    library.load().run("convolution", *convolve(x, layer, kernels, stride, out))
    return in_format_of(maps, out)


@kernel(ops.convolution_backward, "CPU")
def _backward(
    grad: Tensor, maps: Tensor, layer: Tensor, kernels: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = channels_last(computable(maps))
    dx = new_map(x.new_empty, x.shape)
    grads = convolve_backward(computable(grad), x, layer, kernels, stride, dx, add=False)
    return in_format_of(maps, dx), *grads


def convolve(
    x: Tensor, fc_weight: Tensor, kernels: Tensor, stride: int, out: Tensor
) -> library.Call:
    """The call that writes the path of channels-last maps.

    Args:
        x: (B, maps, D, H, W), in a dtype that the kernels read.
        fc_weight: (taps, maps).
        kernels: (D * N, taps, k, k).
        stride: In pixels.
        out: (B, D * N, H', W'), channels last, in the dtype of the maps.
    """
    layer, weights = _weights(x, fc_weight, kernels)
    batch, _, depth, _, width = x.shape
    rows = out.shape[2]
    row = stride * weights.shape[1] * (width + kernels.shape[-1])
    # Enough units for all threads; the result does not depend on them.
    vectors = rows * batch * depth * sum_dtype(x).itemsize // _VECTOR_BYTES
    share = vectors // (2 * torch.get_num_threads())
    band = _even(rows, min(_BAND_BYTES // (row * _VECTOR_BYTES), share))
    tensors = dict(input=x, layer=layer, kernels=weights, out=Maps.of_groups(out, depth))
    return _settings(x, layer, weights, stride, band), tensors


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    stride: int,
    dx: Tensor,
    *,
    add: bool,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of channels-last maps to ``dx``, or add it; return the weights'."""
    layer, weights = _weights(x, fc_weight, kernels)
    depth, height, width = x.shape[2:]
    outs, inputs, size, _, _ = weights.shape
    g = grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (depth, outs))
    columns = (inputs + outs) * (width + size)
    if layer is not None:
        columns += (inputs + layer.shape[1]) * width
    band = _even(height, _BAND_BYTES // (columns * _VECTOR_BYTES))
    summands = len(x) * -(-height // band)
    dkernels = weights.new_empty((summands, *weights.shape))
    dlayer = None if layer is None else weights.new_empty((summands, *layer.shape, depth))
    library.load().run(
        "convolution",
        {**_settings(x, layer, weights, stride, band), "backward": True, "add": add},
        dict(
            input=x,
            layer=layer,
            kernels=weights,
            grad=g.permute(0, 4, 3, 1, 2),
            grad_input=dx,
            grad_layer=dlayer,
            grad_kernels=dkernels,
        ),
    )
    if layer is None and not is_folded(fc_weight):
        return _fold_backward(dkernels, fc_weight, kernels)
    dkernels = dkernels.sum(0).permute(4, 0, 1, 2, 3).flatten(0, 1).contiguous()
    dlayer = torch.zeros_like(fc_weight) if dlayer is None else dlayer.sum((0, 3))
    return dlayer.to(fc_weight.dtype), dkernels.to(kernels.dtype)


def _weights(x: Tensor, fc_weight: Tensor, kernels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Layer and kernels as the library takes them: no layer where folding it is cheaper.

    Returns:
        (taps, maps) or ``None``, and (N, maps, k, k, D): neighbouring channels are vector lanes.
    """
    dtype = sum_dtype(x)
    if is_folded(fc_weight) or x.shape[1] > MAX_FOLDED_MAPS:
        weights = kernels.to(dtype).unflatten(0, (x.shape[2], -1)).permute(1, 2, 3, 4, 0)
        layer = None if is_folded(fc_weight) else _contiguous(fc_weight, dtype)
        return layer, weights.contiguous()
    outs, side = kernels.shape[0] // x.shape[2], kernels.shape[-1]
    folded = x.new_empty((outs, fc_weight.shape[1], side, side, x.shape[2]), dtype=dtype)
    tensors = dict(
        layer=_contiguous(fc_weight, dtype),
        kernels=_contiguous(kernels, dtype),
        folded=folded,
    )
    library.load().run("folding", _folding(folded.shape, fc_weight), tensors)
    return None, folded


def _fold_backward(grads: Tensor, fc_weight: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of layer and kernels, from summands of that of the folded kernels."""
    settings = _folding(grads.shape[1:], fc_weight)
    dlayer = grads.new_empty((settings["outs"], *fc_weight.shape))
    dkernels = grads.new_empty(kernels.shape)
    tensors = dict(
        layer=_contiguous(fc_weight, grads.dtype),
        kernels=_contiguous(kernels, grads.dtype),
        grad_folded=grads,
        grad_layer=dlayer,
        grad_kernels=dkernels,
    )
    settings |= dict(backward=True, summands=len(grads))
    library.load().run("folding", settings, tensors)
    return dlayer.sum(0).to(fc_weight.dtype), dkernels.to(kernels.dtype)


def _folding(folded: Sequence[int], fc_weight: Tensor) -> dict[str, int]:
    """The numbers of a call for folded kernels of a shape, (N, maps, k, k, D)."""
    outs, maps, side, _, depth = folded
    return dict(outs=outs, taps=fc_weight.shape[0], maps=maps, area=side**2, depth=depth)


def _settings(
    x: Tensor, layer: Tensor | None, weights: Tensor, stride: int, band: int
) -> dict[str, int]:
    """The numbers of a call; ``band`` rows of the result are one unit of work."""
    batch, maps, depth, height, width = x.shape
    outs, inputs, size, _, _ = weights.shape
    # One column more than there are maps is for a map of ones.
    columns = inputs if layer is None else layer.shape[1]
    return dict(
        ones=columns - maps,
        batch=batch,
        maps=maps,
        taps=0 if layer is None else inputs,
        outs=outs,
        depth=depth,
        height=height,
        width=width,
        kernel=size,
        stride=stride,
        band=band,
    )


def _contiguous(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous()


def _even(rows: int, most: int) -> int:
    """Size of the equal bands, of at most ``most`` rows and at least one, that ``rows`` make."""
    bands = -(-rows // max(most, 1))
    return -(-rows // max(bands, 1))
