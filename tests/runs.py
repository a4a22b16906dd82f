"""Small training runs within the test's own process."""

import itertools
import shutil
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope

# They register their backbones, in processes that run something of this file too.
import acmix_resnet  # noqa: F401
import acmix_swin  # noqa: F401
from acmix.mm.runner import ACmixRunner
from support import ROOT

DIGITS = ROOT / "swin" / "configs" / "acmix-swin-nano_1xb64_digits-32px.py"
# Every source of randomness that a recipe of ours has, on 20 images: three batches an epoch.
MIXUP = dict(_delete_=True, augments=[dict(type="Mixup", alpha=0.8)])
EMA = [dict(type="EMAHook", momentum=0.05, priority="ABOVE_NORMAL")]
_numbers = itertools.count()


class Stopped(Exception):
    """What a run is stopped by."""


class StopHook(Hook):
    """Ends a run when a method of the hooks is called for the n-th time."""

    priority = "VERY_HIGH"

    def __init__(self, method: str, calls: int) -> None:
        self.left = calls
        setattr(self, method, self._stop)

    def _stop(self, runner, *args, **kwargs) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


class QuickRunner(ACmixRunner):
    """Doesn't ask compilers for their versions, which takes longer than such a run."""

    def _log_env(self, env_cfg: dict) -> None:
        pass


@cache
def _digits() -> Config:
    """The config of the digits; reading it reads all metafiles of MMPretrain."""
    return Config.fromfile(DIGITS)


def tiny_config(work_dir: Path, **changes) -> Config:
    """A Swin-ACmix of two blocks on 20 digits, two epochs of three batches."""
    cfg = deepcopy(_digits())
    cfg.work_dir = str(work_dir)
    cfg.launcher = "none"
    cfg.log_level = "WARNING"
    cfg.visualizer = None
    cfg.default_hooks.pop("visualization")
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.model.backbone.arch = dict(embed_dims=16, depths=[1, 1], num_heads=[2, 4])
    cfg.model.head.in_channels = 32
    cfg.train_cfg.max_epochs = 2
    cfg.param_scheduler = [dict(type="CosineAnnealingLR", T_max=6, by_epoch=False)]
    for split, count in (("train", 20), ("val", 16), ("test", 16)):
        loader = cfg[f"{split}_dataloader"]
        loader.batch_size = 8
        loader.persistent_workers = False
        loader.dataset.indices = count
        loader.dataset.serialize_data = False  # It collects garbage, for a second.
        loader.collate_fn = dict(type="default_collate")
    cfg.merge_from_dict(deepcopy(changes))
    return cfg


def unformatted_configs():
    """Configs are written several times a run; to format one takes longer than to train."""
    return mock.patch("mmengine.config.config.FormatCode", lambda text, **_: (text, True))


def run(cfg: Config, *hooks: Hook) -> ACmixRunner:
    """Train, and give the runner back; also when a ``StopHook`` stopped it."""
    # MMEngine gives runs of one name that start in the same second one message hub.
    cfg.experiment_name = f"run_{next(_numbers)}"
    with DefaultScope.overwrite_default_scope("mmengine"), unformatted_configs():
        runner = QuickRunner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        with suppress(Stopped):
            runner.train()
    return runner


def resume(cfg: Config, *hooks: Hook, path: Path | None = None) -> ACmixRunner:
    """Go on from the newest checkpoint of the work dir, or from a path."""
    cfg.resume, cfg.load_from = True, None if path is None else str(path)
    return run(cfg, *hooks)


def read(path: Path) -> dict:
    """A checkpoint of ours, which is plain data."""
    return torch.load(path, weights_only=True)


def assert_same_end(work_dir: Path, reference: Path, name: str) -> None:
    """Weights, averaged weights, optimiser and schedulers of two runs are equal bit by bit."""
    ours, theirs = read(work_dir / name), read(reference / name)
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
        assert_equal(ours.get(part), theirs.get(part), part)


def assert_equal(ours, theirs, name: str) -> None:
    """Nested containers of tensors and numbers are equal bit by bit."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), name
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), name
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), name
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{name}[{i}]")
    else:
        assert ours == theirs, name


def copied(reference: Path, name: str, work_dir: Path) -> Path:
    """A work dir with nothing but one checkpoint of another run."""
    work_dir.mkdir()
    return Path(shutil.copy(reference / name, work_dir))
