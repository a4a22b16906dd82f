"""Options that the README shows, in a run."""

from mmengine.hooks import EMAHook
from mmpretrain.datasets import RepeatAugSampler

from runs import read, run, tiny_config

OPTIONS = {
    "default_hooks.ema.type": "EMAHook",
    "default_hooks.ema.momentum": 1e-4,
    "default_hooks.ema.priority": "ABOVE_NORMAL",
    "optim_wrapper.accumulative_counts": 2,
    "optim_wrapper.constructor": "LearningRateDecayOptimWrapperConstructor",
    "optim_wrapper.paramwise_cfg.layer_decay_rate": 0.5,
    "train_dataloader.sampler.type": "RepeatAugSampler",
    "model.backbone.frozen_stages": 0,
}


def test_options_work_together(tmp_path):
    runner = run(tiny_config(tmp_path, **OPTIONS))
    assert any(isinstance(hook, EMAHook) for hook in runner.hooks)
    assert isinstance(runner.train_dataloader.sampler, RepeatAugSampler)
    # Of the two blocks the first is frozen; the second and the head are at half and full rate.
    groups = runner.optim_wrapper.optimizer.param_groups
    scales = {group["param_name"]: group["lr_scale"] for group in groups}
    assert scales["head.fc.weight"] == 1
    assert {s for name, s in scales.items() if name.startswith("backbone.stages.1.")} == {0.5}
    assert not any(name.startswith("backbone.stages.0.blocks") for name in scales)
    assert "ema_state_dict" in read(tmp_path / "epoch_2.pth")
