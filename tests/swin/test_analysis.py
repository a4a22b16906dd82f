"""Attention of shifted windows, at the place of the image where the pixels were."""

import pytest
import torch

from acmix.analysis import attention_maps, path_maps
from acmix_swin import ACmixSwinTransformer

ARCH = dict(embed_dims=8, depths=[2], num_heads=[2])


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return ACmixSwinTransformer(ARCH, window_size=4, out_indices=(0,))


def support(weights):
    """First and last row and column where there is weight."""
    where = (weights > 1e-6).nonzero()
    return where.min(dim=0).values.tolist(), where.max(dim=0).values.tolist()


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ((1, 1), [0, 0], [1, 1]),  # across the seam are pixels that it mustn't see
        ((3, 1), [2, 0], [5, 1]),
        ((4, 5), [2, 2], [5, 5]),
        ((7, 7), [6, 6], [7, 7]),
    ],
)
def test_shifted_windows(backbone, query, first, last):
    image = torch.randn(1, 3, 32, 32)
    position = tuple((pixel + 0.5) / 8 for pixel in query)
    (found,) = attention_maps(backbone, image, [position])
    assert found.layer == "stages.0.blocks.1.attn.w_msa"
    assert found.queries == [position]
    for weights in found.weights[0]:
        assert support(weights) == (first, last)
    torch.testing.assert_close(found.weights.sum((2, 3)), torch.ones(1, 2))


def test_maps_of_a_padded_and_shifted_layer():
    """A map of 7×6 is padded to 8×8 around the layer, then shifted."""
    backbone = ACmixSwinTransformer(ARCH, window_size=4, out_indices=(0,), mix="convolution")
    image = torch.zeros(1, 3, 28, 24)
    image[..., 16:20, 16:20] = 1.0  # the pixel (4, 4) of the map
    (of_spot,), (of_none,) = path_maps(backbone, image), path_maps(backbone, image * 0)
    assert of_spot.convolution.shape == (1, 7, 6)
    change = (of_spot.convolution - of_none.convolution).abs()
    assert support(change[0]) == ([2, 2], [6, 5])  # two convolutions around it
