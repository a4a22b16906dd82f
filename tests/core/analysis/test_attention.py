"""Attention of chosen queries: weights of the reference, at the place they are said to be."""

import pytest
import torch
from torch import nn

from acmix import ACmix2d, GlobalACmix, InputError, VectorACmix, WindowACmix, deploy, reference
from acmix.analysis import attention_maps
from support import scrambled


class Tokens(nn.Module):
    """A map, with a token in front of its pixels, through a layer."""

    def __init__(self, layer):
        super().__init__()
        self.block1 = layer

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return self.block1(tokens, tuple(x.shape[2:]))


class ChannelsLast(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.block1 = layer

    def forward(self, x):
        return self.block1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def only(maps):
    (found,) = maps
    return found


def one_hot_values(height, width):
    """A map for every pixel that is one there, (H * W, 1, 1, H, W)."""
    return torch.eye(height * width).view(-1, 1, 1, height, width)


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(("size", "window"), [((9, 11), 5), ((2, 3), 5)], ids=["reflected", "cut"])
def test_sliding_window(size, window, deployed):
    torch.manual_seed(0)
    layer = scrambled(ACmix2d(6, 8, 2, window, stride=2, dilation=1), std=0.5)
    x = torch.randn(1, 6, *size)
    q, k = (conv(x).unflatten(1, (2, 4)) for conv in (layer.conv1, layer.conv2))
    position = layer._position(x)
    if deployed:
        deploy(layer)
    found = only(attention_maps(layer, x, [(0.0, 0.0), (0.6, 0.9)]))
    rows, columns = (size[0] + 1) // 2, (size[1] + 1) // 2
    pixels = [(0, 0), (int(0.6 * rows), int(0.9 * columns))]
    assert found.queries == [((r + 0.5) / rows, (c + 0.5) / columns) for r, c in pixels]
    count = size[0] * size[1]
    values = one_hot_values(*size).expand(-1, 2, 4, -1, -1)
    arguments = (t.expand(count, -1, -1, -1, -1) for t in (q, k))
    weights = reference.sliding_window_attention(
        *arguments, values, position, kernel_size=window, stride=2
    )
    for (row, column), ours in zip(pixels, found.weights, strict=True):
        expected = weights[:, :, 0, row, column].T.unflatten(1, size)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.weights.sum((2, 3)), torch.ones(2, 2))


def test_window_with_padding():
    torch.manual_seed(0)
    layer = scrambled(WindowACmix(8, (3, 4), 2), std=0.5)
    x = torch.randn(1, 8, 5, 6)
    found = only(attention_maps(ChannelsLast(layer), x, [(0.7, 0.95)]))
    padded = torch.nn.functional.pad(x, (0, 2, 0, 1)).permute(0, 2, 3, 1)
    windows = layer.qkv(padded[:, 3:6, 4:8]).view(1, 12, 3, 2, 4).permute(2, 0, 3, 1, 4)
    every_value = torch.eye(12).expand(1, 2, 12, 12)
    weights = reference.window_attention(*windows[:2], every_value, layer._position_bias())
    expected = torch.zeros(2, 6, 8)
    expected[:, 3:6, 4:8] = weights[0, :, 1].unflatten(1, (3, 4))  # row 3 of 5, column 5 of 6
    torch.testing.assert_close(found.weights[0], expected[:, :5, :6])
    torch.testing.assert_close(found.weights.sum((2, 3)) + found.elsewhere, torch.ones(1, 2))
    assert (found.elsewhere > 0.01).all()  # padding is attended to


def test_reduced_keys_and_a_token():
    torch.manual_seed(0)
    layer = scrambled(GlobalACmix(8, 2, sr_ratio=2), std=0.4)
    x = torch.randn(1, 8, 4, 6)
    found = only(attention_maps(Tokens(layer), x, [(0.3, 0.5)]))
    tokens = torch.cat([x.mean((2, 3))[:, None], x.flatten(2).transpose(1, 2)], dim=1)
    small = layer.norm(torch.cat([tokens[:, :1], layer.sr(x).flatten(2).transpose(1, 2)], dim=1))
    query = layer.q(tokens)[0, 1 + 1 * 6 + 3].view(2, 4)
    keys = layer.kv(small)[0, :, :8].view(7, 2, 4)
    weights = (torch.einsum("nd,knd->nk", query, keys) / 2).softmax(dim=1)
    torch.testing.assert_close(found.weights[0].flatten(1), weights[:, 1:])
    torch.testing.assert_close(found.elsewhere[0], weights[:, 0])
    assert found.weights.shape == (1, 2, 2, 3)


@pytest.mark.parametrize("attention", ["patchwise", "pairwise"])
def test_vector_attention_is_a_mean_over_channels(attention):
    torch.manual_seed(0)
    layer = scrambled(VectorACmix(6, 16, 3, share=4, attention=attention), std=0.4)
    with torch.no_grad():  # all values the same in every channel
        layer.conv3.weight.copy_(layer.conv3.weight[:1].expand_as(layer.conv3.weight))
        layer.conv3.bias.fill_(0.3)
    x = torch.randn(1, 6, 5, 7)
    found = only(attention_maps(layer, x, [(0.5, 0.1)]))
    value = layer.conv3(x)[0, 0]
    projections = torch.cat([conv(x) for conv in (layer.conv1, layer.conv2, layer.conv3)], dim=1)
    expected = layer._attend(projections)[0, :, 2, 0].mean()
    torch.testing.assert_close((found.weights[0, 0] * value).sum(), expected)
    assert found.per_channel
    if attention == "pairwise":
        torch.testing.assert_close(found.weights.sum(), torch.tensor(1.0))


def network():
    """Two stages, and a layer that is not called."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stage1", nn.Sequential(ACmix2d(3, 8), nn.ReLU(inplace=True), ACmix2d(8, 8)))
    net.add_module("stage2", nn.Sequential(nn.Dropout(), ACmix2d(8, 8, mix="convolution")))
    return net


def test_the_last_layer_of_each_stage_is_shown():
    names = [m.layer for m in attention_maps(network(), torch.randn(1, 3, 8, 8))]
    assert names == ["stage1.2"]  # that of the second stage has no attention
    names = ["stage1.2", "stage1.0"]
    maps = attention_maps(network(), torch.randn(1, 3, 8, 8), layers=names)
    assert [m.layer for m in maps] == ["stage1.0", "stage1.2"]


def test_the_model_is_left_as_it_was():
    net = network()
    net.stage1.eval()
    modes = [module.training for module in net.modules()]
    attention_maps(net, torch.randn(1, 3, 8, 8))
    assert [module.training for module in net.modules()] == modes
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "add_paths" not in vars(module)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layers=["stage1.1"]), "layers=stage1.1: .* did you mean"),
        (dict(queries=[(0.5, 1.5)]), r"queries=\(0.5, 1.5\): give \(row, column\)"),
        (dict(image=torch.zeros(2, 3, 8, 8)), "give one image"),
        (dict(image=torch.zeros(3, 8)), r"image=\(3, 8\)"),
        (dict(model=nn.Linear(2, 2)), "model=Linear: it has no ACmix layer"),
        (dict(model=ACmix2d(3, 4).half()), "float16: .*give model.float"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = dict(model=network(), image=torch.zeros(1, 3, 8, 8)) | change
    with pytest.raises(InputError, match=message):
        attention_maps(**arguments)
