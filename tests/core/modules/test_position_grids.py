"""The grid of positions is made once a size for all layers, whoever asks first."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import acmix
from acmix.modules.children import encode_position

SIZE = (19, 23)


@pytest.fixture
def layer():
    from acmix.modules import children

    children._grids.clear()
    torch.manual_seed(0)
    return acmix.ACmix2d(8, 8)


def test_grid_of_inference_mode_serves_training(layer):
    x = torch.randn(1, 8, *SIZE)
    with torch.inference_mode():
        expected = layer(x).clone()
    out = layer(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert layer.conv_p.weight.grad.abs().sum() > 0


def test_grid_is_made_once_for_all_layers(layer, monkeypatch):
    from acmix.modules import children

    made = []
    original = children.pixel_grid

    def counted(size, like):
        made.append(tuple(size))
        return original(size, like)

    monkeypatch.setattr(children, "pixel_grid", counted)
    other = acmix.ACmix2d(8, 16)
    for _ in range(2):
        layer(torch.randn(1, 8, *SIZE))
        other(torch.randn(2, 8, *SIZE))
    other.double()(torch.randn(1, 8, *SIZE).double())
    assert made == [SIZE, SIZE]


def test_tensors_without_values_leave_no_grid_behind(layer):
    real = torch.randn(1, 8, *SIZE)
    with FakeTensorMode() as mode:
        fake = acmix.ACmix2d(8, 8)
        assert fake(mode.from_tensor(real)).shape == (1, 8, *SIZE)
    expected = layer(real)
    with mode:
        assert fake(mode.from_tensor(real)).shape == (1, 8, *SIZE)
    assert torch.equal(layer(real), expected)
    assert type(expected) is torch.Tensor


def test_positions_are_channels_last_as_the_cpu_kernels_read_them(layer):
    position = encode_position(layer.conv_p, torch.empty(1, 8, *SIZE))
    assert position.shape == (2, *SIZE)
    assert position.stride(0) == 1
