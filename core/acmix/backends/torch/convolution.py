"""The convolution path in plain torch: a product a pixel, or folded, and a grouped convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.backends.folding import MAX_FOLDED_MAPS, fold, is_folded, widened
from acmix.geometry import output_size, shifts_of
from acmix.tracing import as_number


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """See ``acmix.convolution_path``."""
    maps = as_number(fc_weight.shape[1])
    head_dim = as_number(qkv.shape[1]) // maps
    # Channels last, the layer is one small matrix product a pixel whose result is in the
    # channel order of the grouped convolution; channels first it needs a transposed copy.
    pixels = qkv.permute(0, 2, 3, 1).unflatten(-1, (maps, head_dim)).transpose(-2, -1)
    if kernels is not None and maps <= MAX_FOLDED_MAPS:
        if is_folded(fc_weight) and fc_bias is not None:
            kernels, of_ones = kernels.split((maps, 1), dim=1)
            fc_bias = qkv.new_ones(1)
        else:
            of_ones = kernels
        out = _grouped(pixels, fold(kernels, fc_weight), stride)
        return out if fc_bias is None else out + _of_bias(fc_bias, of_ones, qkv, stride)
    f = F.linear(pixels, fc_weight, fc_bias)
    if kernels is None:
        return _shift_and_sum(f.permute(0, 3, 4, 1, 2), stride)
    return _grouped(f, kernels, stride)


def _of_bias(fc_bias: Tensor, kernels: Tensor, qkv: Tensor, stride: int) -> Tensor:
    """What the bias of the layer adds to the path, (C, H', W').

    The same at all pixels but those at the border, where the padding comes after the layer and
    cuts it off.
    """
    size, (height, width) = as_number(kernels.shape[-1]), qkv.shape[2:]
    summed = torch.einsum("cik,i->ck", widened(kernels.flatten(2)), widened(fc_bias))
    inside = F.unfold(summed.new_ones(1, 1, height, width), size, padding=size // 2, stride=stride)
    out = (summed @ inside[0]).unflatten(1, output_size((height, width), stride))
    return out.to(qkv.dtype)


def _grouped(maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Convolve (B, H, W, D, maps), one group a channel d."""
    groups, padding = as_number(maps.shape[3]), as_number(kernels.shape[-1]) // 2
    x = maps.flatten(-2).permute(0, 3, 1, 2)
    return F.conv2d(x, kernels, stride=stride, padding=padding, groups=groups)


def _shift_and_sum(f: Tensor, stride: int) -> Tensor:
    """Sum of the taps of (B, D, taps, H, W), each moved by its own offset."""
    size = math.isqrt(as_number(f.shape[2]))
    shifted = shifts_of(F.pad(f, (size // 2,) * 4), size, stride)
    return sum((x[:, :, tap] for tap, x in enumerate(shifted)), start=f.new_zeros(()))
