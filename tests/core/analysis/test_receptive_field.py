"""The effective receptive field of networks where it is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acmix import ACmix2d, InputError
from acmix.analysis import contributing_side, effective_receptive_field
from support import scrambled


def test_of_two_convolutions_it_is_their_product():
    net = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(2)))
    field = effective_receptive_field(net, torch.randn(2, 1, 11, 12))
    first, second = (conv.weight.detach() for conv in net)
    kernel = F.conv2d(F.pad(first, (2,) * 4), second.flip(2, 3))[0, 0]
    gradient = torch.zeros(11, 12)
    gradient[3:8, 3:8] += kernel  # in the middle are row 5, and columns 5 and 6
    gradient[3:8, 4:9] += kernel
    torch.testing.assert_close(field, gradient.abs())
    field = effective_receptive_field(net, torch.zeros(1, 1, 13, 13), "0")
    torch.testing.assert_close(field[5:8, 5:8], first[0, 0].abs())
    assert field.count_nonzero() == 9
    assert [contributing_side(field, share) for share in (0.0, 0.999, 1.0)] == [1, 3, 3]
    assert contributing_side(field[:12, :12], 1.0) == 4


def test_it_is_averaged_over_the_images():
    torch.manual_seed(0)
    net, images = scrambled(nn.Sequential(ACmix2d(3, 8, 2, 3), nn.ReLU())), torch.randn(2, 3, 9, 9)
    both = effective_receptive_field(net, images)
    alone = [effective_receptive_field(net, image) for image in images.split(1)]
    assert not torch.allclose(*alone)
    torch.testing.assert_close(both, sum(alone) / 2)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_of_a_classifier_it_is_that_of_the_last_layer():
    torch.manual_seed(0)
    layers = ACmix2d(3, 8, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    field = effective_receptive_field(nn.Sequential(*layers), torch.randn(1, 3, 9, 9))
    assert contributing_side(field, 1.0) == 3
    with pytest.raises(InputError, match=r"module=3: its output is no map"):
        effective_receptive_field(nn.Sequential(*layers), torch.randn(1, 3, 9, 9), "3")
