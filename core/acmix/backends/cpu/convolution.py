"""CPU kernels of the convolution path.

Maps are channels last for the kernels, whatever the memory format of the call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.backends.cpu.maps import Maps
from acmix.backends.cpu.plans import Given, Plan, Plans
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
from acmix.ops.convolution import convolution_path, split_convolution_path
from acmix.ops.registration import kernel

__all__ = [
    "convolution_path",
    "convolve",
    "convolve_backward",
    "read_weights",
    "readable_kernels",
    "split_convolution_path",
]

# Maps (B, maps, D, H, W) of a call: all of them, or the first and the others.
Parts = tuple[Tensor | Maps, Tensor | None]

# Scratch of one unit of work, to stay in the second level cache.
_BAND_BYTES = 512 << 10
_VECTOR_BYTES = 64


@kernel(ops.convolution, "CPU")
def _forward(
    maps: Tensor, rest: Tensor | None, layer: Tensor, kernels: Tensor, stride: int
) -> Tensor:
    return _plans.run([maps, rest, layer, kernels], (stride,))[0]


def _converted(
    maps: Tensor, rest: Tensor | None, layer: Tensor, kernels: Tensor, stride: int
) -> tuple[Tensor, Given]:
    parts = [readable(channels_last(x)) for x in (maps, rest) if x is not None]
    if len({x.dtype for x in parts}) > 1:
        parts = [computable(x) for x in parts]
    weights = [layer.contiguous(), readable_kernels(kernels)]
    x, y = parts[0], parts[1] if len(parts) > 1 else None
    return maps, [x, y, *(w.to(sum_dtype(x)) for w in weights)]


def _plan(x: Tensor, rest: Tensor | None, layer: Tensor, kernels: Tensor, stride: int) -> Plan:
    out = new_image((len(x), len(kernels), *output_size(x.shape[3:], stride)), x.dtype)
    apart, weights, folding = read_weights((x, rest), layer, kernels)
    convolution = convolve((x, rest), apart, weights, stride, out)
    calls = dict(folding=folding, convolution=convolution, attention=None)
    return Plan.of(calls, [x, rest, layer, kernels], [out, weights])


_plans = Plans(_converted, _plan)


@kernel(ops.convolution_backward, "CPU")
def _backward(
    grad: Tensor,
    maps: Tensor,
    rest: Tensor | None,
    layer: Tensor,
    kernels: Tensor,
    stride: int,
) -> tuple[Tensor | None, ...]:
    x = channels_last(computable(maps))
    y = None if rest is None else channels_last(computable(rest))
    dx = new_map(x.new_empty, x.shape)
    dy = None if y is None else new_map(y.new_empty, y.shape)
    call = (computable(grad), (x, y), layer, kernels, stride, (dx, dy))
    *weights, _ = convolve_backward(*call, add=False)
    drest = None if rest is None or dy is None else in_format_of(rest, dy)
    return in_format_of(maps, dx), drest, *weights


def convolve(
    parts: Parts, layer: Tensor | None, weights: Tensor, stride: int, out: Tensor
) -> library.Call:
    """The call that writes the path of channels-last maps.

    Args:
        parts: In a dtype that the kernels read.
        layer: As ``read_weights`` gives it.
        weights: Likewise.
        stride: In pixels.
        out: (B, D * N, H', W'), channels last, in the dtype of the maps.
    """
    x, rest = parts
    batch, _, depth, _, width = x.shape
    rows = out.shape[2]
    row = stride * weights.shape[1] * (width + weights.shape[3])
    # Enough units for all threads; the result does not depend on them.
    vectors = rows * batch * depth * sum_dtype(x).itemsize // _VECTOR_BYTES
    share = vectors // (2 * torch.get_num_threads())
    band = _even(rows, min(_BAND_BYTES // (row * _VECTOR_BYTES), share))
    tensors = dict(input=x, rest=rest, layer=layer, kernels=weights)
    tensors["out"] = Maps.of_groups(out, depth)
    return _settings(parts, layer, weights, stride, band), tensors


def convolve_backward(
    grad: Tensor,
    parts: Parts,
    fc_weight: Tensor,
    kernels: Tensor,
    stride: int,
    grads: Parts,
    scale: Tensor | None = None,
    *,
    add: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Write the gradients of channels-last maps to ``grads``, or add them.

    Returns:
        Those of the layer, of the kernels and of their factor ``scale``, (1,).
    """
    x = parts[0]
    factor = None if scale is None else scale.to(sum_dtype(x))
    layer, weights, folding = read_weights(parts, fc_weight, kernels, factor)
    library.load().run("folding", *folding)
    depth, height, width = x.shape[2:]
    outs, inputs, size, _, _ = weights.shape
    g = grad.permute(0, 2, 3, 1).contiguous().unflatten(3, (depth, outs))
    columns = (inputs + outs) * (width + size)
    if layer is not None:
        columns += (inputs + layer.shape[1]) * width
    band = _even(height, _BAND_BYTES // (columns * _VECTOR_BYTES))
    summands = x.shape[0] * -(-height // band)
    dkernels = weights.new_empty((summands, *weights.shape))
    dlayer = None if layer is None else weights.new_empty((summands, *layer.shape, depth))
    library.load().run(
        "convolution",
        {**_settings(parts, layer, weights, stride, band), "backward": True, "add": add},
        dict(
            input=x,
            rest=parts[1],
            layer=layer,
            kernels=weights,
            grad=g.permute(0, 4, 3, 1, 2),
            grad_input=grads[0],
            grad_rest=grads[1],
            grad_layer=dlayer,
            grad_kernels=dkernels,
        ),
    )
    folds = layer is None and not is_folded(fc_weight)
    if folds:
        dlayer, dkernels = _fold_backward(dkernels, fc_weight, kernels)
    else:
        dkernels = dkernels.sum(0).permute(4, 0, 1, 2, 3).flatten(0, 1).contiguous()
        dlayer = torch.zeros_like(fc_weight) if dlayer is None else dlayer.sum((0, 3))
    dscale = None
    if scale is not None and factor is not None:
        # What is folded is linear in the layer, too, which is smaller.
        dscale = _dot(dlayer, fc_weight) if folds else _dot(dkernels, kernels)
        dscale = dscale.to(scale.dtype).view(scale.shape)
        # A layer by itself is not scaled, so that its gradient is one of scaled kernels already.
        dlayer, dkernels = dlayer * factor if folds else dlayer, dkernels.mul_(factor)
    return dlayer.to(fc_weight.dtype), dkernels.to(kernels.dtype), dscale


def read_weights(
    parts: Parts, fc_weight: Tensor, kernels: Tensor, scale: Tensor | None = None
) -> tuple[Tensor | None, Tensor, library.Call]:
    """Layer and kernels as the library takes them: no layer where folding it is cheaper.

    Args:
        parts: The maps.
        fc_weight: (taps, maps), or (0, maps).
        kernels: (D * N, taps, k, k), or of the maps.
        scale: Factor of the kernels, (1,), in the dtype of the sums over maps.

    Returns:
        (taps, maps) or ``None``; (N, maps, k, k, D), as neighbouring channels are vector lanes; and
        the call that writes these, with the layer folded into them or by themselves.
    """
    dtype, depth = sum_dtype(parts[0]), parts[0].shape[2]
    kernels = readable_kernels(kernels.to(dtype))
    layer = None if is_folded(fc_weight) else _contiguous(fc_weight, dtype)
    folds = layer is not None and _count(parts) <= MAX_FOLDED_MAPS
    taps, side = kernels.shape[1], kernels.shape[-1]
    maps = fc_weight.shape[1] if folds else taps
    weights = torch.empty((len(kernels) // depth, maps, side, side, depth), dtype=dtype)
    tensors = dict(
        layer=layer if folds else None,
        kernels=kernels,
        scale=scale,
        folded=weights,
    )
    return None if folds else layer, weights, (_folding(weights.shape, kernels), tensors)


def _fold_backward(grads: Tensor, fc_weight: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of layer and kernels, from summands of that of the folded kernels."""
    kernels = readable_kernels(kernels.to(grads.dtype))
    settings = _folding(grads.shape[1:], kernels)
    dlayer = grads.new_empty((settings["outs"], *fc_weight.shape))
    dkernels = grads.new_empty(kernels.shape)
    tensors = dict(
        layer=_contiguous(fc_weight, grads.dtype),
        kernels=kernels,
        grad_folded=grads,
        grad_layer=dlayer,
        grad_kernels=dkernels,
    )
    settings |= dict(backward=True, summands=len(grads))
    library.load().run("folding", settings, tensors)
    return dlayer.sum(0), dkernels


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, which cancel each other, in double."""
    return (a.double() * b).sum()


def _folding(folded: Sequence[int], kernels: Tensor) -> dict[str, int]:
    """The numbers of a call for folded kernels of a shape, (N, maps, k, k, D)."""
    outs, maps, side, _, depth = folded
    steps = dict(map_step=kernels.stride(1), tap_step=kernels.stride(3))
    return dict(outs=outs, taps=kernels.shape[1], maps=maps, area=side**2, depth=depth, **steps)


def readable_kernels(kernels: Tensor) -> Tensor:
    """Kernels (C, taps, k, k) as folding reads them: channels first or last."""
    if kernels.is_contiguous(memory_format=torch.channels_last):
        return kernels
    return kernels.contiguous()


def _count(parts: Parts) -> int:
    """Maps of both parts."""
    return sum(x.shape[1] for x in parts if x is not None)


def _settings(
    parts: Parts, layer: Tensor | None, weights: Tensor, stride: int, band: int
) -> dict[str, int]:
    """The numbers of a call; ``band`` rows of the result are one unit of work."""
    batch, split, depth, height, width = parts[0].shape
    maps = _count(parts)
    outs, inputs, size, _, _ = weights.shape
    # One column more than there are maps is for a map of ones.
    columns = inputs if layer is None else layer.shape[1]
    return dict(
        ones=columns - maps,
        batch=batch,
        maps=maps,
        split=split,
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
