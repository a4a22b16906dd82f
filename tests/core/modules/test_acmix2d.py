"""ACmix with sliding window attention."""

import pytest
import torch

import acmix
from acmix import ACmix2d, reference
from layer_contract import LayerContract
from layers import LAYERS
from released import BACKENDS, assert_reproduces
from support import golden


class TestACmix2d(LayerContract):
    layer = LAYERS["ACmix2d"]

    def attention(self, layer, x):
        q, k, v = self.projections(layer, x).unflatten(1, (3, 2, 4)).unbind(1)
        height, width = x.shape[2:]
        position = torch.empty(4, height, width, dtype=x.dtype)
        weight, bias = layer.conv_p.weight[..., 0, 0], layer.conv_p.bias
        for y in range(height):
            for column in range(width):
                # From -1 at the first pixel to 1 at the last.
                place = [2 * column / (width - 1) - 1, 2 * y / (height - 1) - 1]
                position[:, y, column] = weight @ torch.tensor(place, dtype=x.dtype) + bias
        window = dict(kernel_size=layer.kernel_att, stride=layer.stride, dilation=layer.dilation)
        # Channel order n * D + d.
        return reference.sliding_window_attention(q, k, v, position, **window).flatten(1, 2)

    def projections(self, layer, x):
        return torch.cat([layer.conv1(x), layer.conv2(x), layer.conv3(x)], dim=1)


@torch.no_grad
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(5, 9), (13, 7)])
def test_stride_and_dilation(stride, dilation, size):
    contract = TestACmix2d()
    layer, (x,) = contract.sample(size, stride=stride, dilation=dilation)
    path = reference.convolution_path(
        contract.projections(layer, x),
        layer.fc.weight.flatten(1),
        layer.dep_conv.weight,
        stride=stride,
    )
    expected = layer.rate1 * contract.attention(layer, x) + layer.rate2 * path
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == torch.nn.Conv2d(6, 8, 3, stride, padding=1)(x.float()).shape


def test_channels_last_equals_contiguous():
    layer, (x,) = TestACmix2d().sample(stride=2)
    last = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, layer(x))
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["acmix2d_s1", "acmix2d_s2", "acmix2d_k5h2"])
def test_reproduces_the_released_code(name, backend):
    case = golden("acmix_conv2d.pt")[name]
    config = dict(case["config"])
    config["num_heads"] = config.pop("head")
    layer = ACmix2d(**config, backend=backend)
    layer.load_state_dict(case["state_dict"])
    assert_reproduces(layer, case)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(out_channels=10), "dim=10: must be a multiple of num_heads=4"),
        (dict(num_heads=0), "num_heads=0: give a positive integer"),
        (dict(kernel_att=6), "kernel_att=6: give an odd size"),
        (dict(stride=0), "stride=0: give a positive integer"),
        (dict(dilation=True), "dilation=True: give a positive integer"),
        (dict(in_channels=-1), "in_channels=-1: give a positive integer"),
    ],
)
def test_wrong_sizes_are_named(options, message):
    with pytest.raises(acmix.InputError, match=message):
        ACmix2d(**dict(in_channels=8, out_channels=8) | options)
