"""A training whose numbers are no numbers any more ends, and says where."""

import re

import pytest
import torch
from mmengine.hooks import Hook

from acmix import InputError
from acmix.mm.finite import FiniteHook
from runs import read, resume, run, tiny_config


class Spoil(Hook):
    """Puts a value into the first weight or its gradient before an iteration."""

    priority = "VERY_HIGH"

    def __init__(self, iteration: int, value: float, gradient: bool = False) -> None:
        self.iteration, self.value, self.gradient = iteration, value, gradient

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter != self.iteration:
            return
        weight = next(runner.model.parameters())
        if self.gradient:
            weight.register_hook(lambda grad: grad * self.value)
        else:
            weight.data.view(-1)[0] = self.value


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, FiniteHook))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError) as caught:
        run(tiny_config(tmp_path), Spoil(4, float("nan")))
    text = str(caught.value)
    assert text.startswith("iteration 5 (epoch 2): loss is nan; learning rate 0.00")
    assert re.search(r"alpha 0\.[45]\d* to 0\.[45]\d*, beta 0\.[45]\d* to 0\.[45]\d*;", text)
    assert "go on with --resume" in text
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == ["epoch_1.pth"]
    assert resume(tiny_config(tmp_path)).epoch == 2


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"iteration 2 .*: the norm of the gradients is inf"):
        run(tiny_config(tmp_path), Spoil(1, float("inf"), gradient=True))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    changes = {"optim_wrapper.clip_grad": None, "train_cfg.max_epochs": 1}
    with pytest.raises(InputError, match="patch_embed.*is not finite.*no checkpoint is saved"):
        run(tiny_config(tmp_path, **changes), Spoil(2, float("nan"), gradient=True))
    assert not list(tmp_path.glob("*.pth*"))


def test_images_of_the_batch_are_named(tmp_path):
    class Sample:
        def __init__(self, path):
            self.img_path = path

    runner = run(tiny_config(tmp_path, **{"train_cfg.max_epochs": 1}))
    batch = {"data_samples": [Sample(f"{i}.png") for i in range(6)]}
    with pytest.raises(InputError, match=r"images 0.png, 1.png, 2.png, 3.png and 2 more;"):
        hook_of(runner).after_train_iter(runner, 0, batch, {"loss": torch.tensor(float("inf"))})


def test_steps_that_mixed_precision_skips_are_no_error(tmp_path, monkeypatch):
    runner = run(tiny_config(tmp_path, **{"train_cfg.max_epochs": 1}))
    runner.message_hub.update_scalar("train/grad_norm", float("inf"))
    with pytest.raises(InputError, match="norm of the gradients"):
        hook_of(runner).after_train_iter(runner, 0, None, {"loss": 1.0})
    monkeypatch.setattr("acmix.mm.finite.AmpOptimWrapper", type(runner.optim_wrapper))
    hook_of(runner).after_train_iter(runner, 0, None, {"loss": 1.0})
    assert read(tmp_path / "epoch_1.pth")["meta"]["epoch"] == 1
