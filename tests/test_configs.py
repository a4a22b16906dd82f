"""Every config is built and stepped; the ImageNet ones run end to end on a tiny data set."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

import acmix.mm  # noqa: F401  registers the runner and the digits
from acmix.modules import ACmixBase
from acmix.modules.base import MIX_MODES
from acmix.modules.shift import SHIFT_MODES
from support import ROOT

CONFIGS = sorted(
    p for project in ("resnet", "san", "pvt", "swin") for p in ROOT.glob(f"{project}/configs/*.py")
)
# ImageNet's models with a mode of the paper's Table 6 or 7.
ABLATIONS = sorted(ROOT.glob("*/configs/ablation/*.py"))
GRAMMAR = re.compile(r"acmix-[a-z0-9-]+_(\d+)xb(\d+)_(in1k(_amp)?|imagefolder|digits-32px)\.py")
# Those of mixed precision differ in the optimiser's wrapper alone.
MODEL_CONFIGS = [path for path in CONFIGS if not path.stem.endswith("_amp")]
SMALLEST = re.compile(r"-(resnet26|san10|pvt-tiny|swin-tiny)_|digits")


def ids(path):
    return path.stem


def slow_if_large():
    """The configs of every model; those of larger ones are slow."""
    return [
        pytest.param(path, marks=[pytest.mark.slow] * (not SMALLEST.search(path.stem)))
        for path in MODEL_CONFIGS
    ]


@pytest.mark.parametrize("path", slow_if_large(), ids=ids)
def test_config_builds_and_steps(path):
    cfg = Config.fromfile(path)
    cfg.model.head.num_classes = cfg.model.head.num_classes or 3
    cfg.model.data_preprocessor = dict(
        cfg.data_preprocessor, num_classes=cfg.model.head.num_classes
    )
    model = MODELS.build(cfg.model)
    model.init_weights()
    for layer in (m for m in model.modules() if isinstance(m, ACmixBase)):
        taps = torch.eye(9).view(1, 9, 3, 3).expand_as(layer.dep_conv.weight)
        assert torch.equal(layer.dep_conv.weight, taps)
        assert layer.rate1.item() == layer.rate2.item() == 0.5
    model.train()
    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    data = model.data_preprocessor(
        dict(inputs=torch.randint(0, 255, (2, 3, 64, 64)), data_samples=samples), training=True
    )
    loss = sum(model(**data, mode="loss").values())
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("path", [*CONFIGS, *ABLATIONS], ids=ids)
def test_config_name_tells_the_recipe(path):
    match = GRAMMAR.fullmatch(path.name)
    assert match, path.name
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.batch_size == int(match[2])
    scale = cfg.get("auto_scale_lr")
    if scale is not None:
        assert scale.base_batch_size == int(match[1]) * int(match[2])


@pytest.mark.parametrize("path", sorted(set(CONFIGS) - set(MODEL_CONFIGS)), ids=ids)
def test_mixed_precision_is_the_recipe_in_another_wrapper(path):
    cfg, plain = Config.fromfile(path), in1k(path.stem.removesuffix("_amp"))
    wrapper, theirs = dict(cfg.optim_wrapper), dict(plain.optim_wrapper)
    assert wrapper.pop("type") == "AmpOptimWrapper"
    assert (wrapper.pop("dtype"), wrapper.pop("loss_scale")) == ("bfloat16", "dynamic")
    theirs.pop("type", None)
    assert wrapper == theirs
    assert (cfg.model, cfg.param_scheduler) == (plain.model, plain.param_scheduler)


@pytest.mark.parametrize(
    "model", ["resnet/configs/ablation/acmix-resnet50", "swin/configs/ablation/acmix-swin-tiny"]
)
def test_every_mode_has_a_config(model):
    modes = {f"mix-{mode}" for mode in MIX_MODES} | {f"shift-{mode}" for mode in SHIFT_MODES}
    modes -= {"mix-alpha_beta", "shift-learnable"}  # which the model's own config has
    found = {path.name.split("_")[0] for path in ROOT.glob(f"{model}-*")}
    assert found == {f"{Path(model).name}-{mode.replace('_', '-')}" for mode in modes}


# Backbones with few channels.
SMALL = {
    "swin": dict(arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]), out_indices=(1,)),
    "resnet": dict(depth=26, stem_channels=8, base_channels=4),
}


@pytest.mark.parametrize("path", ABLATIONS, ids=ids)
def test_an_ablation_is_the_recipe_in_another_mode(path):
    cfg, name = Config.fromfile(path), re.fullmatch(r"(.+?)-(mix|shift)-(.+?)(_.+)", path.stem)
    plain = in1k(name[1] + name[4])
    assert cfg.model.backbone.pop(name[2]) == name[3].replace("-", "_")
    assert cfg.to_dict() == plain.to_dict()


@pytest.mark.parametrize("path", ABLATIONS, ids=ids)
def test_an_ablation_builds_and_steps(path):
    backbone = Config.fromfile(path).model.backbone
    backbone.update(SMALL[path.relative_to(ROOT).parts[0]])
    model = MODELS.build(backbone)
    layers = [layer for layer in model.modules() if isinstance(layer, ACmixBase)]
    model(torch.rand(2, 3, 64, 64))[-1].sum().backward()
    assert layers
    assert {layer.mix for layer in layers} == {backbone.get("mix", "alpha_beta")}
    shifts = {layer.dep_conv.mode for layer in layers if layer.has_convolution}
    assert shifts <= {backbone.get("shift", "learnable")}
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name


def in1k(name):
    return Config.fromfile(next(p for p in CONFIGS if p.stem == name))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_swin_recipe(size):
    cfg = in1k(f"acmix-swin-{size}_8xb128_in1k")
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-3, 0.05)
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.model.backbone.drop_path_rate == {"tiny": 0.2, "small": 0.3, "base": 0.5}[size]
    assert [a.alpha for a in cfg.model.train_cfg.augments] == [0.8, 1.0]
    assert cfg.model.head.loss.label_smooth_val == 0.1


# Drop path and the norm that gradients are clipped at.
PVT_SIZES = {"tiny": (0.1, None), "small": (0.1, None), "medium": (0.3, 1.0), "large": (0.3, 1.0)}


@pytest.mark.parametrize("size", PVT_SIZES)
def test_pvt_recipe(size):
    cfg = in1k(f"acmix-pvt-{size}_8xb128_in1k")
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-3, 0.05)
    assert cfg.train_cfg.max_epochs == 300
    drop_path, clipped = PVT_SIZES[size]
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.optim_wrapper.get("clip_grad", {}).get("max_norm") == clipped
    assert (cfg.model.backbone.arch, cfg.model.head.loss.label_smooth_val) == (size, 0.1)
    sampler = cfg.train_dataloader.sampler
    assert (sampler.type, sampler.num_repeats) == ("RepeatAugSampler", 3)


@pytest.mark.parametrize(
    ("model", "depth"),
    [*(("resnet", d) for d in (26, 38, 50)), *(("san", d) for d in (10, 15, 19))],
)
def test_resnet_and_san_recipe(model, depth):
    cfg = in1k(f"acmix-{model}{depth}_8xb32_in1k")
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum) == ("SGD", 0.1, 0.9)
    assert optimizer.weight_decay == 1e-4
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.model.backbone.depth == depth


def smoothed(labels, share):
    """Targets of 1,000 classes: 0.1 shared out among ``share`` classes, the right one or not."""
    targets = torch.full((len(labels), 1000), 0.1 / share)
    right = 0.9 if share == 999 else 0.9 + 0.1 / share
    return targets.scatter(1, labels[:, None], right)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        # The authors' ResNet and SAN spread over the other classes, timm's loss over all.
        ("acmix-resnet26_8xb32_in1k", 999),
        ("acmix-san10_8xb32_in1k", 999),
        ("acmix-pvt-tiny_8xb128_in1k", 1000),
        ("acmix-swin-tiny_8xb128_in1k", 1000),
    ],
)
def test_label_smoothing_is_the_authors(config, share):
    loss = MODELS.build(in1k(config).model.head.loss)
    scores, labels = torch.randn(8, 1000), torch.randint(0, 1000, (8,))
    targets = smoothed(labels, share)
    expected = -(targets * scores.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss(scores, labels), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", ["acmix-resnet26_8xb32_in1k", "acmix-san10_8xb32_in1k"])
def test_images_are_resized_as_by_torchvision(config):
    image = np.random.default_rng(0).integers(0, 256, (301, 420, 3), dtype=np.uint8)
    crop = TRANSFORMS.build(in1k(config).train_dataloader.dataset.pipeline[1])
    theirs = functional.resized_crop(
        Image.fromarray(image), 20, 30, 200, 150, [224, 224], InterpolationMode.BILINEAR
    )
    crop.rand_crop_params = lambda _: (20, 30, 200, 150)
    assert np.array_equal(crop(dict(img=image))["img"], np.asarray(theirs))
    _, *steps, _ = in1k(config).test_dataloader.dataset.pipeline
    ours = Compose([TRANSFORMS.build(step) for step in steps])(dict(img=image))["img"]
    theirs = functional.center_crop(functional.resize(Image.fromarray(image), 256), 224)
    assert np.array_equal(ours, np.asarray(theirs))


SPARED = {"swin": "relative_position_bias_table", "pvt": "cls_token"}


@pytest.mark.parametrize("project", SPARED)
def test_recipe_spares_vectors_from_weight_decay(project):
    from mmengine.optim import build_optim_wrapper

    cfg = in1k(f"acmix-{project}-tiny_8xb128_in1k")
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.dim() == 1 or name.endswith(SPARED[project])
        assert decay[id(parameter)] == (0 if spared else 0.05), name


def test_digits_are_split_once():
    parts = [DATASETS.build(dict(type="Digits", split=split)) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1437, 360]
    seen = [{part[i]["img"].tobytes() for i in range(len(part))} for part in parts]
    assert len(seen[0] & seen[1]) == 0
    assert parts[1].metainfo["classes"] == tuple("0123456789")
    with pytest.raises(ValueError, match="choose from train, test"):
        DATASETS.build(dict(type="Digits", split="val"))
