"""The convolution path in plain torch: a product a pixel, or folded, and a grouped convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.backends.folding import fold, widened
from acmix.geometry import output_size

# Folding the layer into the kernels saves its product and makes the convolution 3N / k_c² times as
# large. On two AVX-512 cores it wins for 12 maps (56²: 5.8 against 6.6 ms, training step 19 against
# 27), and loses for 18 (28²: 6.0 against 3.5 ms).
_MAX_FOLDED_MAPS = 12


def convolution_path(
    qkv: Tensor,
    fc_weight: Tensor,
    kernels: Tensor | None,
    fc_bias: Tensor | None,
    *,
    stride: int,
) -> Tensor:
    """See ``acmix.convolution_path``."""
    maps = fc_weight.shape[1]
    head_dim = qkv.shape[1] // maps
    # Channels last, the layer is one small matrix product a pixel whose result is in the
    # channel order of the grouped convolution; channels first it needs a transposed copy.
    pixels = qkv.permute(0, 2, 3, 1).unflatten(-1, (maps, head_dim)).transpose(-2, -1)
    if kernels is not None and maps <= _MAX_FOLDED_MAPS:
        out = _grouped(pixels, fold(kernels, fc_weight), stride)
        return out if fc_bias is None else out + _of_bias(fc_bias, kernels, qkv, stride)
    f = F.linear(pixels, fc_weight, fc_bias)
    if kernels is None:
        return _shift_and_sum(f.permute(0, 3, 4, 1, 2), stride)
    return _grouped(f, kernels, stride)


def _of_bias(fc_bias: Tensor, kernels: Tensor, qkv: Tensor, stride: int) -> Tensor:
    """What the bias of the layer adds to the path, (C, H', W').

    The same at all pixels but those at the border, where the padding comes after the layer and
    cuts it off.
    """
    size, (height, width) = kernels.shape[-1], qkv.shape[2:]
    summed = torch.einsum("cik,i->ck", widened(kernels.flatten(2)), widened(fc_bias))
    inside = F.unfold(summed.new_ones(1, 1, height, width), size, padding=size // 2, stride=stride)
    out = (summed @ inside[0]).unflatten(1, output_size((height, width), stride))
    return out.to(qkv.dtype)


def _grouped(maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Convolve (B, H, W, D, maps), one group a channel d."""
    groups, padding = maps.shape[3], kernels.shape[-1] // 2
    x = maps.flatten(-2).permute(0, 3, 1, 2)
    return F.conv2d(x, kernels, stride=stride, padding=padding, groups=groups)


def _shift_and_sum(f: Tensor, stride: int) -> Tensor:
    """Sum of the taps of (B, D, taps, H, W), each moved by its own offset."""
    size = math.isqrt(f.shape[2])
    height, width = f.shape[-2:]
    padded = F.pad(f, (size // 2,) * 4)
    offsets = [(dy, dx) for dy in range(size) for dx in range(size)]
    taps = (
        padded[:, :, tap, dy : dy + height : stride, dx : dx + width : stride]
        for tap, (dy, dx) in enumerate(offsets)
    )
    return sum(taps, start=f.new_zeros(()))
