"""Every config of a detector or segmentor trains and predicts on a few small images."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from acmix.mm.runner import ACmixRunner
from acmix.mm.settings import apply_data_root
from acmix.modules import ACmixBase
from shapes import draw
from support import ROOT, build_model

CONFIGS = sorted(ROOT.glob("*/configs/detection/*.py")) + sorted(
    ROOT.glob("*/configs/segmentation/*.py")
)
# Of the images of ImageNet, as every config has them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Those of a larger backbone alone are for a thorough run.
TRAINED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.thorough] * ("-small_" in path.stem))
    for path in CONFIGS
]
PAPERS = [path for path in CONFIGS if "_own-" not in path.stem]
GRAMMAR = re.compile(
    r"(retinanet|(cascade-)?mask-rcnn)_acmix-[a-z]+-?[a-z0-9]+_fpn_(ms-|ms-crop-)?[13]x_coco"
    r"|(fpn|upernet)_acmix-pvt-[a-z]+_8xb4-40k_ade20k-512x512"
    r"|(fpn|upernet)_acmix-swin-[a-z]+_8xb2-160k_ade20k-512x512"
)


def shrink(node):
    """An eighth of every size and few regions, in place, wherever they are in a config."""
    if isinstance(node, (list, tuple)):
        for item in node:
            shrink(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("scale", "scales", "crop_size", "size"):
                node[key] = _eighth(value)
            elif (key, value) == ("max_per_img", 1000) or key == "num":
                node[key] = 16
            else:
                shrink(value)


def _eighth(value):
    return type(value)(map(_eighth, value)) if isinstance(value, (list, tuple)) else value // 8


def small(path, data, work_dir):
    """The config at ``path`` for three iterations on small images."""
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.launcher, cfg.randomness = str(work_dir), "none", dict(seed=0)
    cfg.data_root = str(data)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.num_workers, loader.persistent_workers = 0, False
        shrink(loader.dataset.pipeline)
    cfg.train_dataloader.batch_size = 2
    cfg.val_dataloader.dataset.indices = 2
    shrink(cfg.model)
    if "detection" in path.parts:
        cfg.train_dataloader.dataset.filter_cfg.min_size = 0
        cfg.train_cfg.max_epochs = 1
    else:
        cfg.train_cfg.update(max_iters=3, val_interval=3)
    # The first steps of the warm-up, where there is one.
    cfg.param_scheduler = cfg.param_scheduler[:1]
    cfg.default_hooks.update(checkpoint=None, logger=dict(cfg.default_hooks.logger, interval=1))
    apply_data_root(cfg)
    return cfg


def save_pretrained(backbone, path):
    """A checkpoint such as a classifier leaves: batch statistics that go with the weights."""
    network = MODELS.build(dict(backbone, frozen_stages=-1, norm_eval=False))
    network.init_weights()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    rng = np.random.default_rng(0)
    images = torch.tensor(np.stack([draw(rng)[0] for _ in range(6)])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = F.interpolate((images - mean) / std, (100, 133))
    network.train()(F.pad(images, (0, 27, 0, 28)))  # as a detector pads them
    weights = {f"backbone.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": weights | {"head.fc.bias": torch.zeros(1000)}}, path)
    return str(path)


def data_of(path):
    """Name of the fixture with the data of a config."""
    if "_own-" in path.stem:
        return f"own_{path.stem.rpartition('-')[2]}"
    return "coco" if "detection" in path.parts else "ade"


@pytest.mark.parametrize("path", TRAINED)
def test_config_trains_and_predicts(path, request, tmp_path):
    data = request.getfixturevalue(data_of(path))
    cfg = small(path, data, tmp_path)
    cfg.load_from = save_pretrained(cfg.model.backbone, tmp_path / "pretrained.pth")
    runner = ACmixRunner.from_cfg(cfg)
    layers = [m for m in runner.model.modules() if isinstance(m, ACmixBase)]
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 3
    assert torch.tensor(losses).isfinite().all()
    assert layers
    assert all(layer.rate1.isfinite() for layer in layers)
    (sample,) = runner.model.test_step(next(iter(runner.val_dataloader)))
    check = check_segments if "segmentation" in path.parts else check_instances
    check(sample, masks="mask-rcnn" in path.stem)


def check_segments(sample, masks):
    labels = sample.pred_sem_seg.data
    assert labels.shape == (1, 96, 128)
    assert 0 <= labels.min() <= labels.max() < 150


def check_instances(sample, masks):
    found = sample.pred_instances
    assert found.bboxes.shape == (len(found), 4)
    assert found.bboxes.isfinite().all()
    assert found.scores.shape == found.labels.shape == (len(found),)
    assert ("masks" in found) == masks
    if masks:
        assert found.masks.shape == (len(found), 96, 128)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_name_and_recipe(path):
    assert GRAMMAR.fullmatch(path.stem)
    cfg = Config.fromfile(path)
    optimizer = cfg.optim_wrapper.optimizer
    if "detection" in path.parts:
        rates = {"resnet": ("SGD", 0.01), "san": ("SGD", 0.01)}
        expected = rates.get(path.parts[-4], ("AdamW", 1e-4))
        assert cfg.train_cfg.max_epochs == (36 if "3x" in path.stem else 12)
        assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
        warmup, steps = cfg.param_scheduler
        assert warmup.end == (1000 if "swin" in path.stem else 500)
        assert steps.end == cfg.train_cfg.max_epochs
    else:
        expected = ("AdamW", 6e-5 if "swin" in path.stem else 2e-4)
        gpus, batch, iterations = map(int, re.search(r"_(\d+)xb(\d+)-(\d+)k_", path.stem).groups())
        assert (gpus, batch) == (8, cfg.train_dataloader.batch_size)
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 1000 * iterations
        assert cfg.param_scheduler[-1].type == "PolyLR"
    assert (optimizer.type, optimizer.lr) == expected


@pytest.mark.parametrize("path", [p for p in CONFIGS if "swin" in p.stem], ids=lambda p: p.stem)
def test_vectors_and_position_tables_have_no_weight_decay(path):
    model = build_model(path)
    optimizer = build_optim_wrapper(model, Config.fromfile(path).optim_wrapper).optimizer
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, weight in model.backbone.named_parameters():
        spared = name.endswith(("rate1", "rate2", "relative_position_bias_table", "norm1.weight"))
        assert decay[id(weight)] == 0 or not spared, name
        assert decay[id(weight)] > 0 or weight.dim() == 1 or spared, name
