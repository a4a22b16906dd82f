"""Our backbones in the detectors of torchvision."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from acmix import InputError
from acmix.detection import fpn_backbone
from families import FAMILIES
from support import ROOT

SIZES = [(70, 101), (65, 90)]


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def detector(kind, family):
    """A small one that answers whatever the scores, with images not padded to multiples of 32."""
    stages, extra_blocks = family.every_stage[-4:], None
    options = dict(box_score_thresh=0.0, box_detections_per_img=5)
    if kind is RetinaNet:
        stages, extra_blocks = stages[1:], LastLevelP6P7(16, 16)
        options = dict(score_thresh=0.0, detections_per_img=5)
    backbone = fpn_backbone(family.build(out_indices=stages), 16, extra_blocks=extra_blocks)
    return kind(backbone, 3, min_size=65, max_size=101, size_divisible=1, **options)


# Every detector, and every family in one at least: what families differ in are their maps.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FasterRCNN, "resnet"),
        (RetinaNet, "san"),
        (RetinaNet, "swin"),
        (MaskRCNN, "pvt"),
        (MaskRCNN, "swin"),
    ],
)
def test_detectors_train_and_predict(kind, name):
    model = detector(kind, FAMILIES[name])
    images = [torch.rand(3, *size) for size in SIZES]
    boxes = torch.tensor([[5.0, 5.0, 40.0, 50.0], [20.0, 10.0, 60.0, 40.0]])
    targets = [
        dict(boxes=boxes, labels=torch.tensor([1, 2]), masks=torch.ones(2, *size).byte())
        for size in SIZES
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = sum(model(images, targets).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    for size, found in zip(SIZES, model.eval()(images), strict=True):
        assert found["boxes"].shape == (5, 4)
        assert found["boxes"].isfinite().all()
        if kind is MaskRCNN:
            assert found["masks"].shape == (5, 1, *size)


@pytest.mark.parametrize("size", [(97, 61), (64, 64)])
def test_pyramid_has_the_sizes_of_the_maps(family, size):
    backbone = fpn_backbone(family.build(out_indices=family.every_stage), 16).eval()
    sizes = family.map_sizes(*size)
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    names = [*map(str, family.every_stage), "pool"]
    maps = {name: tuple(m.shape) for name, m in backbone(torch.randn(2, 3, *size)).items()}
    assert maps == {name: (2, 16, *s) for name, s in zip(names, sizes, strict=True)}


def test_helper_leaves_modes_and_statistics_alone(family):
    backbone = family.build(out_indices=family.every_stage).train()
    next(backbone.children()).eval()
    modes = [module.training for module in backbone.modules()]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    fpn_backbone(backbone)
    assert [module.training for module in backbone.modules()] == modes
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)


class Maps(nn.Conv2d):
    """A convolution from one channel, and its maps by halves."""

    def __init__(self, change):
        super().__init__(1, 8, 1)
        self.change = change

    def forward(self, x):
        x = super().forward(x)
        return self.change((x, x[..., ::2, ::2]))


def test_channels_can_be_given_for_images_that_are_not_rgb():
    backbone = fpn_backbone(Maps(tuple), 4, in_channels_list=[8, 8])
    assert backbone(torch.rand(1, 1, 9, 9)).keys() == {"0", "1", "pool"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda maps: maps[0], "Tensor: give one with a tuple of maps"),
        (lambda maps: (maps[0].mean((2, 3)),), r"\(1, 8\): give one with a tuple of maps"),
        (lambda maps: maps[::-1], r"\[32, 64\]: give the largest first"),
    ],
)
def test_backbones_without_maps_are_refused(change, error):
    backbone = nn.Sequential(nn.Conv2d(3, 1, 1), Maps(change))
    with pytest.raises(InputError, match=error):
        fpn_backbone(backbone)


@pytest.mark.slow
def test_without_torchvision_the_error_says_what_to_install():
    code = "import sys; sys.modules['torchvision'] = None; import acmix; import acmix.detection"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "core", capture_output=True, text=True, check=False
    )
    assert "acmix.detection needs torchvision: pip install torchvision" in result.stderr
