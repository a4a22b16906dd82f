"""ACmix with global attention over spatially reduced keys and values."""

import pytest
import torch
import torch.nn.functional as F

import acmix
from acmix import GlobalACmix
from acmix.layout import image_of
from layer_contract import LayerContract
from layers import LAYERS


class TestGlobalACmix(LayerContract):
    layer = LAYERS["GlobalACmix"]

    def reduced(self, layer, x, size):
        """Keys and values, (B, T + h * w, 2C), and (h, w)."""
        extra = x.shape[1] - size[0] * size[1]
        if layer.sr_ratio == 1:
            return layer.kv(x), size
        small = layer.sr(x[:, extra:].transpose(1, 2).unflatten(2, size))
        tokens = torch.cat([x[:, :extra], small.flatten(2).transpose(1, 2)], dim=1)
        return layer.kv(layer.norm(tokens)), small.shape[2:]

    def attention(self, layer, x, size):
        kv, _ = self.reduced(layer, x, size)
        q, k, v = (
            t.unflatten(2, (2, 4)).transpose(1, 2) for t in (layer.q(x), *kv.chunk(2, dim=2))
        )
        weights = (q @ k.transpose(-1, -2) / 2).softmax(dim=-1)
        return layer.proj((weights @ v).transpose(1, 2).flatten(2))

    def projections(self, layer, x, size):
        extra = x.shape[1] - size[0] * size[1]
        kv, small = self.reduced(layer, x, size)
        kv = kv[:, extra:].transpose(1, 2).unflatten(2, small)
        kv = F.interpolate(kv, size=size, mode="bilinear")
        return torch.cat([layer.q(x)[:, extra:].transpose(1, 2).unflatten(2, size), kv], dim=1)

    def as_output(self, convolution, x, size):
        """Extra tokens have none."""
        return F.pad(
            convolution.flatten(2).transpose(1, 2), (0, 0, x.shape[1] - size[0] * size[1], 0)
        )


@torch.no_grad
@pytest.mark.parametrize("sr_ratio", [1, 3])
@pytest.mark.parametrize("extra", [0, 2])
def test_reductions_and_extra_tokens(sr_ratio, extra):
    contract, size = TestGlobalACmix(), (6, 9)
    layer = GlobalACmix(8, 2, sr_ratio).double()
    x = torch.randn(2, extra + 54, 8, dtype=torch.float64)
    qkv = contract.projections(layer, x, size)
    fc, kernels = layer.fc, layer.dep_conv.weight
    path = acmix.reference.convolution_path(qkv, fc.weight.flatten(1), kernels, fc.bias)
    path = contract.as_output(path, x, size)
    expected = layer.rate1 * contract.attention(layer, x, size) + layer.rate2 * path
    torch.testing.assert_close(layer(x, size), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 5)])
def test_maps_smaller_than_a_reduction(size):
    x = torch.randn(2, 1 + size[0] * size[1], 8)
    assert GlobalACmix(8, 2, sr_ratio=4)(x, size).shape == x.shape


def test_number_of_tokens_is_named():
    with pytest.raises(acmix.InputError, match=r"input shape=\(2, 11, 8\): give \(B, 3 \* 4, 8\)"):
        GlobalACmix(8, 2)(torch.zeros(2, 11, 8), (3, 4))


def test_tokens_of_one_image_are_an_image_channels_last():
    for batch in (1, 2):
        image = image_of(torch.rand(batch, 5 + 6 * 4, 8)[:, 5:], (6, 4))
        # Torch tells the format by the strides alone, and so writes its results.
        assert F.interpolate(image, size=(9, 9), mode="bilinear").stride(1) == 1
