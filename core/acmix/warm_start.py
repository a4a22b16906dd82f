"""The weight and bias of a k×k convolution as the start of an ACmix layer's convolution path."""

from typing import cast

import torch
from torch import Tensor, nn

from acmix.modules import ACmix2d


def can_copy(layer: ACmix2d) -> bool:
    """Whether the layer can start as a convolution: alpha can be 0, and the shifts are kernels."""
    switchable = layer.mix not in ("one_one", "attention")
    return switchable and layer.dep_conv.learnable and layer.dilation == 1


@torch.no_grad()
def copy_convolution(conv: nn.Conv2d, layer: ACmix2d) -> float:
    """Start the layer as the nearest convolution it can be, with alpha = 0 and beta = 1.

    The N output channels of group d are one matrix of N k² rows, a row for each channel and tap.
    The path gives it as (kernels of the group) · (layer over the maps) · (projections of the
    group), whose inner size is k² or 3N, so the best start is its singular value decomposition,
    cut at rank min(k², 3N): right vectors become projections, the rest kernels. They take the last
    maps, so values before keys before queries; maps beyond the rank keep their initialisation. A
    bias is exact, and takes one of the ranks.

    Args:
        conv: A convolution of the geometry of the layer.
        layer: A layer that ``can_copy``.

    Returns:
        Frobenius norm of what the weight loses over that of the weight.
    """
    heads, groups, taps = layer.num_heads, layer.head_dim, layer.kernel_conv**2
    matrices = conv.weight.cpu().double().flatten(2).unflatten(0, (groups, heads))
    matrices = matrices.transpose(2, 3).flatten(1, 2)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rank = min(min(taps, 3 * heads) - (conv.bias is not None), values.shape[1])

    projections = (layer.conv1, layer.conv2, layer.conv3)
    rows = torch.cat([projection.weight for projection in projections])
    biases = torch.cat([cast(Tensor, projection.bias) for projection in projections])
    maps = cast(nn.Conv2d, layer.fc).weight.zero_().flatten(1)
    kernels = layer.dep_conv.weight.unflatten(0, (groups, heads)).flatten(3)

    fitted = slice(-rank * groups, None)
    rows[fitted] = right[:, :rank].transpose(0, 1).flatten(0, 1)[..., None, None].to(rows)
    biases[fitted] = 0
    maps[:rank, -rank:].fill_diagonal_(1)
    scaled = (left * values[:, None])[..., :rank].unflatten(1, (heads, taps))
    kernels[:, :, :rank] = scaled.transpose(2, 3).to(kernels)
    if conv.bias is not None:
        # A map of ones through the centre tap, which the zero padding never meets.
        ones = slice(-(rank + 1) * groups, -rank * groups)
        rows[ones], biases[ones] = 0, 1
        maps[rank, -rank - 1] = 1
        kernels[:, :, rank] = 0
        kernels[:, :, rank, taps // 2] = conv.bias.view(groups, heads)

    for projection, row, bias in zip(projections, rows.chunk(3), biases.chunk(3), strict=True):
        projection.weight.copy_(row)
        cast(Tensor, projection.bias).copy_(bias)
    for name, value in zip(layer.RATES, (0.0, 1.0), strict=True):
        if hasattr(layer, name):
            getattr(layer, name).fill_(value)
    lost, whole = values[:, rank:].square().sum(), values.square().sum()
    return (lost / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt().item()
