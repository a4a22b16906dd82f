"""Two processes train as one with the batches of both."""

import copy
from functools import partial

import pytest
import torch
from mmengine.config import Config
from torch import nn

import acmix_resnet  # noqa: F401  registers the backbone
from acmix.mm.sync_batchnorm import synchronise
from processes import together
from runs import read, run, tiny_config
from support import ROOT

# Between weights after an epoch.
TOLERANCE = 2e-5
# No random numbers, and an epoch of whole batches: four of eight images.
STEADY = {
    "train_cfg.max_epochs": 1,
    "train_dataloader.dataset.indices": 32,
    "model.backbone.drop_path_rate": 0.0,
    "param_scheduler": None,
}
SGD = dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9, weight_decay=0.05)
# Adam divides by the size of a gradient, so its eps has to be above the rounding of one.
OPTIMIZERS = {"SGD": SGD, "AdamW": dict(type="AdamW", eps=1e-4)}
RESNET = ROOT / "resnet" / "configs" / "acmix-resnet26-narrow_1xb64_digits-32px.py"


def steady_config(work_dir, batch, **changes):
    cfg = tiny_config(work_dir, **STEADY)
    cfg.train_dataloader.batch_size = batch
    steps = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [step for step in steps if step.type != "RandomCrop"]
    cfg.merge_from_dict(copy.deepcopy(changes))
    return cfg


def train_in_two(cfg):
    cfg.launcher = "pytorch"
    together(2, cfg.work_dir + "_meeting", lambda rank: run(cfg))


def difference(work_dir, reference):
    ours, theirs = (read(path / "epoch_1.pth")["state_dict"] for path in (work_dir, reference))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_train_as_one_with_both_batches(optimizer, tmp_path):
    changes = {"optim_wrapper.optimizer": OPTIMIZERS[optimizer]}
    run(steady_config(tmp_path / "one", 8, **changes))
    train_in_two(steady_config(tmp_path / "two", 4, **changes))
    assert difference(tmp_path / "two", tmp_path / "one") < TOLERANCE
    run(steady_config(tmp_path / "half", 4, **changes))
    assert difference(tmp_path / "half", tmp_path / "one") > 100 * TOLERANCE


@pytest.mark.slow
def test_accumulated_batches_count_as_one(tmp_path):
    changes = {"optim_wrapper.optimizer": SGD}
    twice = {**changes, "optim_wrapper.accumulative_counts": 2}
    run(steady_config(tmp_path / "one", 8, **changes))
    run(steady_config(tmp_path / "twice", 4, **twice))
    assert difference(tmp_path / "twice", tmp_path / "one") < TOLERANCE
    train_in_two(steady_config(tmp_path / "twice_in_two", 2, **twice))
    assert difference(tmp_path / "twice_in_two", tmp_path / "one") < TOLERANCE


@pytest.mark.slow
def test_the_learning_rate_is_scaled_with_the_batch(tmp_path):
    """Two processes, and two batches accumulated: four times the batch that the rate is for."""
    run(steady_config(tmp_path / "one", 8, **{"optim_wrapper.optimizer": SGD}))
    changes = {
        "optim_wrapper.optimizer": {**SGD, "lr": SGD["lr"] / 4},
        "optim_wrapper.accumulative_counts": 2,
        "auto_scale_lr": dict(enable=True, base_batch_size=2),
        "log_level": "INFO",
    }
    train_in_two(steady_config(tmp_path / "scaled", 2, **changes))
    assert difference(tmp_path / "scaled", tmp_path / "one") < TOLERANCE
    log = next((tmp_path / "scaled").glob("*/*.log")).read_text()
    assert "Learning rates are multiplied by 4: they are for 2 samples, and a step has 8" in log
    assert "base_lr: 1.0000e-01" in log


def resnet_config(work_dir, batch, **changes):
    # At rates from 1e-3 on, a rounding in the first of 26 layers is 0.1 in the last. A single step,
    # since one may also decide for a ReLU, and so for what comes after.
    steady = {"optim_wrapper.optimizer": {**SGD, "lr": 1e-4}, "train_dataloader.dataset.indices": 8}
    cfg = steady_config(work_dir, batch, **steady)
    cfg.model = Config.fromfile(RESNET).model
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.slow
def test_synchronised_batch_norm_makes_two_processes_one(tmp_path):
    run(resnet_config(tmp_path / "one", 8))
    train_in_two(resnet_config(tmp_path / "two", 4, sync_bn="torch"))
    assert difference(tmp_path / "two", tmp_path / "one") < TOLERANCE
    train_in_two(resnet_config(tmp_path / "apart", 4))
    assert difference(tmp_path / "apart", tmp_path / "one") > 100 * TOLERANCE


def statistics(network, images):
    """Outputs, and the gradients and running statistics that they leave."""
    network.train()
    images = images.clone().requires_grad_()
    out = network(images)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return out.detach(), images.grad, gradients, dict(network.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batch_norm_of_uneven_batches(momentum, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum)).double()
    nn.init.normal_(network[1].weight)
    images = torch.randn(5, 3, 6, 7, dtype=torch.float64)
    trained = copy.deepcopy(network)
    out, image_grad, gradients, buffers = statistics(trained, images)
    trained.eval()

    def compare(rank):
        part = slice(0, 2) if rank == 0 else slice(2, 5)
        own = copy.deepcopy(network)
        synchronise(own, ordinary=True)
        own_out, own_image_grad, own_gradients, own_buffers = statistics(own, images[part])
        equal = partial(torch.testing.assert_close, rtol=0, atol=1e-12)
        equal(own_out, out[part])
        equal(own_image_grad, image_grad[part])
        equal(own_buffers, buffers)
        for name, gradient in own_gradients.items():
            torch.distributed.all_reduce(gradient)
            equal(gradient, gradients[name])
        equal(own.eval()(images), trained(images))

    together(2, tmp_path / "meeting", compare)
