"""Costs of every stage by what they are for: the paper's Table 1, and nothing lost."""

import torch
from torch import nn

from acmix import ACmix2d, WindowACmix
from acmix.analysis import stage_costs
from acmix.complexity import count_multiply_adds, count_parameters


def test_a_layer_is_split_as_in_table_1():
    # C = 64, N = 4 (so D = 16), windows of 7×7, k_c = 3, on 28×28 pixels.
    layer, rest = stage_costs(ACmix2d(64, 64), (64, 28, 28))
    pixels = 28 * 28
    assert layer.multiply_adds == {
        "projections": 3 * 64**2 * pixels,
        "attention": (3 * 7**2 * 64 + 2 * 16) * pixels,
        "convolution": (3 * 3**2 + 3**4) * 64 * pixels,
        "other": 0,
    }
    assert layer.parameters == {
        "projections": 3 * (64**2 + 64),
        "attention": 3 * 16,
        "convolution": 3 * 3**2 * 4 + 3**4 * 64,
        "other": 2,
    }
    assert not rest.parameters
    assert rest.multiply_adds == {"other": 0}


class Net(nn.Module):
    """Stages in a list that nobody calls, as PVT's are; a stem and a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(8, 16, 1), ACmix2d(16, 16), ACmix2d(16, 16)]),
                nn.ModuleList([nn.Conv2d(16, 8, 2, 2), WindowACmix(8, 4, 2)]),
            ]
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv1(x)
        for layer in [*self.stages[0], self.stages[1][0]]:
            x = layer(x)
        return self.head(self.stages[1][1](x.permute(0, 2, 3, 1)).mean((1, 2)))


def test_stages_and_the_rest_are_the_whole():
    net = Net()
    net.stages[0].requires_grad_(False)
    costs = stage_costs(net, (3, 24, 24))
    assert [c.stage for c in costs] == ["stages.0", "stages.1", "rest"]
    parameters = sum(sum(c.parameters.values()) for c in costs)
    assert parameters == sum(p.numel() for p in net.parameters()) > count_parameters(net)
    total = sum(sum(c.multiply_adds.values()) for c in costs)
    assert total == count_multiply_adds(net, (3, 24, 24))
    assert costs[0].multiply_adds["other"] == 12 * 12 * 8 * 16
    assert costs[1].multiply_adds["other"] == 6 * 6 * 16 * 8 * 4
    assert costs[2].multiply_adds["other"] == 12 * 12 * 3 * 8 * 9 + 8 * 5
    assert net.training
    assert torch.is_grad_enabled()
