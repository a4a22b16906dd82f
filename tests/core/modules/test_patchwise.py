"""ACmix with SAN's self-attention, patchwise and pairwise."""

import importlib

import pytest
import torch

import acmix
from acmix import VectorACmix
from layer_contract import LayerContract
from layers import LAYERS, randomised


def neighbour(index, size, reach):
    """Row or column reflected at the border; ``None`` outside a map too small for that."""
    if 0 <= index < size:
        return index
    if reach >= size:
        return None
    return -index if index < 0 else 2 * (size - 1) - index


class TestPatchwise(LayerContract):
    layer = LAYERS["patchwise"]

    def attention(self, layer, x):
        """Pixel by pixel and offset by offset, straight from the equations."""
        q, k, v = layer.conv1(x), layer.conv2(x), layer.conv3(x)
        size, (height, width) = layer.kernel_att, x.shape[2:]
        offsets = [(dy - size // 2, dx - size // 2) for dy in range(size) for dx in range(size)]
        reach = size // 2
        out = torch.zeros_like(v)
        for y in range(height):
            for column in range(width):
                around = [
                    (neighbour(y + dy, height, reach), neighbour(column + dx, width, reach))
                    for dy, dx in offsets
                ]
                at = (y, column)
                keys, values = (torch.stack([m[..., i, j] for i, j in around], 2) for m in (k, v))
                weights = self.weights(layer, q[..., y, column], keys, at, around, (height, width))
                # Channel c has the weights c mod (C / share).
                shared = weights.repeat(1, v.shape[1] // layer.shared, 1)
                out[..., y, column] = (shared * values).sum(dim=2)
        return out

    def weights(self, layer, query, keys, at, around, size):
        """(B, C / share, k\u00b2) of the query and all its keys together."""
        pair = torch.cat([query, keys.flatten(1)], dim=1)[..., None, None]
        return layer.conv_w(pair).view(len(query), layer.shared, -1)

    def projections(self, layer, x):
        return torch.cat([layer.conv1(x), layer.conv2(x), layer.conv3(x)], dim=1)


class TestPairwise(TestPatchwise):
    layer = LAYERS["pairwise"]

    def weights(self, layer, query, keys, at, around, size):
        """A softmax over the neighbourhood, of a number for each key and its position."""

        def place(y, column):
            grid = [2 * column / (size[1] - 1) - 1, 2 * y / (size[0] - 1) - 1]
            weight, bias = layer.conv_p.weight[..., 0, 0], layer.conv_p.bias
            return weight @ torch.tensor(grid, dtype=query.dtype) + bias

        offset = torch.stack([place(*at) - place(*there) for there in around], dim=1)
        relation = query.unsqueeze(2) - keys
        pair = torch.cat([relation, offset.expand(len(query), -1, -1)], dim=1).unsqueeze(3)
        return layer.conv_w(pair).squeeze(3).softmax(dim=2)


@torch.no_grad
def test_patchwise_weights_need_no_unfolded_keys_in_evaluation():
    layer = randomised(VectorACmix(6, 16, 5)).double().eval()
    q, k = (torch.randn(2, 4, 9, 8, dtype=torch.float64) for _ in range(2))
    unfolded = layer.conv_w(layer._patches(q, k)).unflatten(1, (layer.shared, 25))
    torch.testing.assert_close(layer._patchwise(q, k), unfolded)


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
def test_maps_too_small_to_reflect(attention, size):
    layer = VectorACmix(6, 16, 7, attention=attention)
    out = layer(torch.randn(2, 6, *size))
    out.sum().backward()
    assert out.shape == (2, 16, *size)
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dim=12), "dim=12: must be a multiple of share=8"),
        (dict(kernel_att=4), "kernel_att=4: give an odd size"),
        (dict(attention="pairwize"), "attention='pairwize': .* did you mean 'pairwise'"),
    ],
)
def test_wrong_sizes_are_named(options, message):
    with pytest.raises(acmix.InputError, match=message):
        VectorACmix(**dict(in_channels=8, dim=16) | options)


@pytest.mark.parametrize("module", ["acmix", "acmix.modules.neighbourhood"])
def test_the_former_name_warns(module):
    with pytest.warns(DeprecationWarning, match="is called VectorACmix now") as caught:
        assert importlib.import_module(module).PatchwiseACmix is VectorACmix
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'Patchwise'"):
        _ = importlib.import_module(module).Patchwise
