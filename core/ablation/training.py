"""One training on the embedded digits: the rules of the configs in a loop over tensors.

The models are smaller than the configs' and the batches half as large, so that the whole grid takes
less than an hour. The data, crops, optimiser, schedule and loss are the configs' own. A run is so
many batches, whatever the number of images: they are drawn from one shuffled pass after another,
and every batch is full.
"""

import copy
import hashlib
import time
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from grid import ALL, Run
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmpretrain.registry import DATASETS, MODELS
from torch import Tensor, nn

import acmix.mm  # noqa: F401  registers the digits
from acmix.modules import ACmixBase

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "resnet": "resnet/configs/acmix-resnet26-narrow_1xb64_digits-32px.py",
    "swin": "swin/configs/acmix-swin-nano_1xb64_digits-32px.py",
}
# The first two stages of the ResNet; half the width of the Swin, and one block less.
SMALLER = {
    "resnet": dict(
        backbone=dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
        head=dict(in_channels=128),
    ),
    "swin": dict(
        backbone=dict(arch=dict(embed_dims=32, depths=[2, 1], num_heads=[2, 4])),
        head=dict(in_channels=64),
    ),
}
BATCH = 32
# Epochs of the configs' schedule, which a run of any length goes through.
EPOCHS = 15


@cache
def config(model: str) -> Config:
    """The config of a model, made smaller."""
    cfg = Config.fromfile(ROOT / CONFIGS[model])
    cfg.merge_from_dict(dict(model=SMALLER[model]))
    assert cfg.max_epochs == EPOCHS
    cfg.optim_wrapper.optimizer.fused = True
    return cfg


@cache
def recipe() -> str:
    """Eight digits that stand for all settings: results of others don't go together with these."""
    parts = [str(config(model).to_dict()) for model in CONFIGS]
    return hashlib.sha256(f"{BATCH} {parts}".encode()).hexdigest()[:8]


@cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images as the configs resize them, (B, 3, 32, 32) of uint8, and labels, (B,)."""
    cfg = config("swin")
    data = DATASETS.build(dict(type="Digits", split=split, pipeline=cfg.test_pipeline))
    samples = [data[index] for index in range(len(data))]
    labels = [sample["data_samples"].gt_label for sample in samples]
    return torch.stack([sample["inputs"] for sample in samples]), torch.cat(labels)


def subset(labels: Tensor, images: str, seed: int) -> Tensor:
    """Indices of so many images of every class, or of all; those of a seed are nested."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if images == ALL:
        return order
    count = int(images)
    return torch.cat([order[labels[order] == label][:count] for label in labels.unique()])


class Batches:
    """Random crops of training images in random order, one full batch after another.

    Args:
        run: Says which images, and the seed.
    """

    def __init__(self, run: Run) -> None:
        images, labels = digits("train")
        chosen = subset(labels, run.images, run.seed)
        pipeline = config(run.model).train_pipeline
        self.padding = next(step.padding for step in pipeline if step.type == "RandomCrop")
        padded, side = F.pad(images[chosen], [self.padding] * 4), images.shape[-1]
        # All crops of every image, without copies, (B, 3, 2p + 1, 2p + 1, 32, 32).
        self.crops = padded.unfold(2, side, 1).unfold(3, side, 1)
        self.labels = labels[chosen]
        self.generator = torch.Generator().manual_seed(run.seed)
        self.queue = torch.empty(0, dtype=torch.long)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next images, (B, 3, 32, 32) of uint8, and labels, (B,)."""
        while len(self.queue) < BATCH:
            order = torch.randperm(len(self.labels), generator=self.generator)
            self.queue = torch.cat([self.queue, order])
        index, self.queue = self.queue[:BATCH], self.queue[BATCH:]
        y, x = torch.randint(2 * self.padding + 1, (2, BATCH), generator=self.generator)
        return self.crops[index, :, y, x], self.labels[index]


def build(run: Run) -> nn.Module:
    """The model of a run, with the start of its seed."""
    settings = copy.deepcopy(config(run.model).model)
    settings.backbone.update(mix=run.mix, shift=run.shift)
    torch.manual_seed(run.seed)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(settings)
    model.init_weights()
    return model.to(memory_format=torch.channels_last)


def train(run: Run) -> dict[str, str]:
    """Train, test on the held-out images, and tell what came out.

    Returns:
        Top-1 in percent, the mean loss of the last fifteenth of the run, the means of alpha and
        beta over the layers, and the seconds of the processor, as text; alpha or beta is empty
        where the mix has none.
    """
    start = time.process_time()
    model, batches = build(run), Batches(run)
    losses = _optimise(model, batches, run)
    top1 = _test(model, run.model)
    layers = [layer for layer in model.modules() if isinstance(layer, ACmixBase)]
    return dict(
        top1=f"{top1:.2f}",
        loss=f"{sum(losses) / len(losses):.4f}",
        alpha=_mean([layer.alpha() for layer in layers]),
        beta=_mean([layer.beta() for layer in layers]),
        seconds=f"{time.process_time() - start:.2f}",
    )


def _optimise(model: nn.Module, batches: Batches, run: Run) -> list[float]:
    """The losses of the last of the schedule's epochs."""
    cfg, epoch = config(run.model), run.steps // EPOCHS
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    _join_groups(wrapper.optimizer)
    schedule = [_scheduler(dict(part), wrapper, epoch) for part in cfg.param_scheduler]
    torch.manual_seed(run.seed)  # drop path: the start of the weights took more for some modes
    model.train()
    losses = []
    for _ in range(run.steps):
        images, labels = batches.draw()
        loss = model.head.loss_module(_scores(model, images, run.model), labels)
        wrapper.update_params(loss)
        for scheduler in schedule:
            scheduler.step()
        losses.append(loss.item())
    return losses[-epoch:]


def _join_groups(optimizer: torch.optim.Optimizer) -> None:
    """MMEngine makes a group of every parameter, and that takes a quarter of a step."""
    joined: dict[float, dict] = {}
    for group in optimizer.param_groups:
        same = joined.setdefault(group["weight_decay"], dict(group, params=[]))
        same["params"] += group["params"]
    optimizer.param_groups = list(joined.values())


def _scheduler(settings: dict, wrapper: object, epoch: int) -> object:
    """A scheduler of the config, where an epoch has so many steps."""
    kind = PARAM_SCHEDULERS.get(settings.pop("type"))
    assert kind is not None
    assert settings.pop("convert_to_iter_based")
    return kind.build_iter_from_epoch(optimizer=wrapper, epoch_length=epoch, **settings)


def _scores(model: nn.Module, images: Tensor, name: str) -> Tensor:
    preprocessor = config(name).data_preprocessor
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    return model.head(model.extract_feat(x))


@torch.no_grad()
def _test(model: nn.Module, name: str) -> float:
    images, labels = digits("test")
    model.eval()
    parts = images.split(120), labels.split(120)
    right = sum((_scores(model, x, name).argmax(1) == y).sum() for x, y in zip(*parts, strict=True))
    return 100 * int(right) / len(labels)


def _mean(factors: list[Tensor | None]) -> str:
    learned = [factor.item() for factor in factors if factor is not None]
    return f"{sum(learned) / len(learned):.3f}" if learned else ""
