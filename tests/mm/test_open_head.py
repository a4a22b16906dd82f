"""Image folder configs through MMPretrain's API: the number of classes is the checkpoint's."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import MODELS

from acmix import InputError
from acmix.mm import OpenLinearClsHead
from support import ROOT
from weights_files import build, swin, write_timm_swin

CONFIGS = sorted(ROOT.glob("*/configs/*imagefolder.py"))
SMALL = {
    "resnet": dict(stem_channels=8, base_channels=4),
    "san": dict(widths=(32, 32, 32, 64, 64), stem_channels=8),
    "pvt": dict(
        arch=dict(
            embed_dims=[8, 16, 20, 32],
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 5, 4],
            mlp_ratios=[2, 2, 2, 2],
            sr_ratios=[8, 4, 2, 1],
        )
    ),
    "swin": dict(arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 4])),
}
CHANNELS = {"resnet": 128, "san": 64, "pvt": 32, "swin": 64}


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


def small(path):
    """An image folder config with a small model."""
    cfg = Config.fromfile(path)
    family = path.parts[-3]
    cfg.model.backbone.update(SMALL[family])
    cfg.model.head.in_channels = CHANNELS[family]
    return cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_classes_are_those_of_the_checkpoint(path, tmp_path):
    cfg = small(path)
    trained = cfg.model.copy()
    trained.head = dict(cfg.model.head, num_classes=3)
    weights = MODELS.build(trained).state_dict()
    meta = {"dataset_meta": {"classes": ("cat", "dog", "owl")}}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "a.pth")
    assert get_model(cfg).head.num_classes is None
    inferencer = ImageClassificationInferencer(cfg, str(tmp_path / "a.pth"))
    assert inferencer.model.head.num_classes == 3
    assert torch.equal(inferencer.model.head.fc.weight, weights["head.fc.weight"])
    (result,) = inferencer(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert result["pred_class"] in ("cat", "dog", "owl")
    assert len(result["pred_scores"]) == 3


def test_every_loader_opens_the_head(tmp_path):
    file = write_timm_swin(tmp_path)
    model = swin()
    model["head"].update(type="OpenLinearClsHead", num_classes=None)
    network = build(model)
    network.load_state_dict(torch.load(file.path, weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(network(file.image), file.logits)


def test_an_open_head_says_what_it_lacks():
    head = OpenLinearClsHead(None, 4)
    with pytest.raises(InputError, match="num_classes=None: load a checkpoint"):
        head((torch.ones(1, 4),))
    assert OpenLinearClsHead(3, 4)((torch.ones(1, 4),)).shape == (1, 3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_layer_wise_decay_is_two_options(path):
    cfg = small(path)
    cfg.model.head.num_classes = 3
    cfg.merge_from_dict(
        {
            "optim_wrapper.constructor": "LearningRateDecayOptimWrapperConstructor",
            "optim_wrapper.paramwise_cfg.layer_decay_rate": 0.5,
        }
    )
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    scales = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    last = model.get_layer_depth("head.fc.weight")[1] - 1
    assert scales[id(model.head.fc.weight)] == 1
    assert min(scales.values()) == 0.5**last
    assert len(scales) == len(list(model.parameters()))
