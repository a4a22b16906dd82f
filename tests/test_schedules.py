"""Learning rates of whole runs, iteration by iteration, against the authors' formulas."""

from math import cos, pi

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

import acmix.mm  # noqa: F401  registers the scheduler
from runs import QuickRunner
from support import ROOT

# Iterations of an epoch: formulas go by their share of it, so few say what many do.
EPOCH = 4
CONFIGS = sorted(ROOT.glob("*/configs/*_in1k.py"))


class OneWeight(BaseModel):
    """The least that can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        return dict(loss=self.weight.sum())


class RatesHook(Hook):
    """Keeps the learning rate of every iteration."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])


def rates(cfg, work_dir):
    """The rate of every iteration of a run by this config, with another model and no data."""
    hook = RatesHook()
    with DefaultScope.overwrite_default_scope("mmengine"):
        runner = QuickRunner(
            OneWeight(),
            str(work_dir),
            train_dataloader=dict(
                batch_size=1,
                num_workers=0,
                dataset=[dict(inputs=torch.zeros(1))] * EPOCH,
                sampler=dict(type="DefaultSampler", shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=cfg.train_cfg.max_epochs),
            optim_wrapper=dict(optimizer=dict(cfg.optim_wrapper.optimizer)),
            param_scheduler=cfg.param_scheduler,
            default_hooks=dict(checkpoint=None, logger=None),
            log_level="ERROR",
        )
        runner.register_hook(hook)
        runner.train()
    return hook.rates


def swin(t):
    """Swin's: timm's cosine of all iterations, whose first 20 epochs are a warm-up."""
    if t < 20 * EPOCH:
        return 1e-6 + (1e-3 - 1e-6) * t / (20 * EPOCH)
    return 1e-5 + (1e-3 - 1e-5) * (1 + cos(pi * t / (300 * EPOCH))) / 2


def pvt(t):
    """PVT's: the same by epoch, with a warm-up of 5."""
    epoch = t // EPOCH
    if epoch < 5:
        return 1e-6 + (1e-3 - 1e-6) * epoch / 5
    return 1e-5 + (1e-3 - 1e-5) * (1 + cos(pi * epoch / 300)) / 2


def resnet(t, epochs=100):
    """That of the authors' ResNet: from lr / 4 in 5 epochs, then a cosine of the rest."""
    if t < 5 * EPOCH:
        return 0.1 / 4 + 3 * 0.1 / 4 * (1 + t) / (5 * EPOCH)
    return 0.1 * (1 + cos(pi * (t - 5 * EPOCH) / ((epochs - 5) * EPOCH))) / 2


def san(t):
    """SAN's: torch's cosine, by epoch."""
    return 0.1 * (1 + cos(pi * (t // EPOCH) / 100)) / 2


# Formula and iterations of the warm-up where that goes by iteration.
FORMULAS = {
    "swin": (swin, 20 * EPOCH),
    "pvt": (pvt, 0),
    "resnet": (resnet, 5 * EPOCH),
    "san": (san, 0),
}


def assert_follows(found, formula, warmup):
    """Equal, but for a warm-up: MMEngine's ends an iteration earlier or starts one later."""
    step = max(found) / warmup if warmup else 0
    for t, rate in enumerate(found):
        slack = step * 1.001 if t < warmup else 0
        assert rate == pytest.approx(formula(t), rel=1e-6, abs=slack + 1e-12), t


@pytest.mark.slow
@pytest.mark.parametrize("project", FORMULAS)
def test_every_rate_is_the_authors(project, tmp_path):
    config = next(path for path in CONFIGS if path.parts[-3] == project)
    formula, warmup = FORMULAS[project]
    cfg = Config.fromfile(config)
    found = rates(cfg, tmp_path)
    assert len(found) == EPOCH * cfg.train_cfg.max_epochs
    assert_follows(found, formula, warmup)


def test_the_authors_90_epochs_are_one_option(tmp_path):
    cfg = Config.fromfile(ROOT / "resnet/configs/acmix-resnet26_8xb32_in1k.py")
    cfg.merge_from_dict({"train_cfg.max_epochs": 90})
    found = rates(cfg, tmp_path)
    assert len(found) == 90 * EPOCH
    assert_follows(found, lambda t: resnet(t, epochs=90), 5 * EPOCH)
