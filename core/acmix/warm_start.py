"""The weights of a k×k convolution as the start of an ACmix layer's convolution path."""

import torch
from torch import Tensor

from acmix.modules import ACmix2d


def can_copy(layer: ACmix2d) -> bool:
    """Whether the layer can start as a convolution: alpha can be 0, and the shifts are kernels."""
    switchable = layer.mix not in ("one_one", "attention")
    return switchable and layer.dep_conv.learnable and layer.dilation == 1


@torch.no_grad()
def copy_convolution(weight: Tensor, layer: ACmix2d) -> float:
    """Start the layer as the nearest convolution it can be, with alpha = 0 and beta = 1.

    The N output channels of group d are one matrix of N k² rows, a row for each channel and tap.
    The path gives it as (kernels of the group) · (layer over the maps) · (projections of the
    group), whose inner size is k² or 3N, so the best start is its singular value decomposition,
    cut at rank min(k², 3N): right vectors become projections, the rest kernels. Values take them
    first, then keys, then queries; maps beyond the rank keep their initialisation.

    Args:
        weight: (C, C_in, k, k), of the sizes of the layer.
        layer: A layer that ``can_copy``.

    Returns:
        Frobenius norm of the difference over that of the weight.
    """
    heads, groups, taps = layer.num_heads, layer.head_dim, layer.kernel_conv**2
    matrices = weight.cpu().double().flatten(2).unflatten(0, (groups, heads))
    matrices = matrices.transpose(2, 3).flatten(1, 2)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rank = min(taps, 3 * heads, values.shape[1])

    projections = (layer.conv1, layer.conv2, layer.conv3)
    rows = torch.cat([projection.weight for projection in projections])
    biases = torch.cat([projection.bias for projection in projections])
    rows[-rank * groups :] = right[:, :rank].transpose(0, 1).flatten(0, 1)[..., None, None].to(rows)
    biases[-rank * groups :] = 0
    for projection, row, bias in zip(projections, rows.chunk(3), biases.chunk(3), strict=True):
        projection.weight.copy_(row)
        projection.bias.copy_(bias)
    layer.fc.weight.zero_()
    layer.fc.weight.flatten(1)[:rank, -rank:].fill_diagonal_(1)
    kernels = (left * values[:, None])[..., :rank].unflatten(1, (heads, taps)).transpose(2, 3)
    layer.dep_conv.weight.unflatten(0, (groups, heads)).flatten(3)[:, :, :rank] = kernels.to(rows)
    for name, value in (("rate1", 0.0), ("rate2", 1.0)):
        if hasattr(layer, name):
            getattr(layer, name).fill_(value)
    lost, whole = values[:, rank:].square().sum(), values.square().sum()
    return (lost / whole.clamp_min(torch.finfo(whole.dtype).tiny)).sqrt().item()
