"""What the deploy form gives at inference: ``python core/benchmarks/deploy.py``.

The sides of a case alternate within one run, on one thread, in processor time: that is fair on a
machine that others use too. The table goes to ``deploy.csv`` beside this file.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmcv.cnn import fuse_conv_bn
from timing import Table
from torch import nn

import acmix
from acmix_resnet import ACmixResNet

# Channels and size of the map in the four stages of ResNet-ACmix-50.
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
OUTPUT = Path(__file__).with_name("deploy.csv")


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """The networks, and the size of an image or map."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for channels, size in STAGES:
        block = nn.Sequential(acmix.ACmix2d(channels, channels), nn.BatchNorm2d(channels))
        found[f"ACmix2d, norm, {channels} at {size}²"] = block, (channels, size, size)
    found["ResNet-ACmix-50"] = ACmixResNet(50), (3, 224, 224)
    return found


def processor_time(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list]:
    """Seconds of this thread on a processor, for every side in turn."""
    seconds: dict[str, list] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    return seconds


def main() -> None:
    """Time every case, and keep the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table()
    for name, (model, size) in models().items():
        plain = model.eval()
        for batch in (1, 4):
            image = torch.rand(batch, *size)
            deployed = acmix.deploy(copy.deepcopy(plain), image)
            networks = dict(plain=plain, deployed=deployed)
            if name.startswith("ResNet"):
                networks["deployed, mmcv's fusion"] = fuse_conv_bn(copy.deepcopy(deployed))
            sides = {key: lambda n=net, x=image: n(x) for key, net in networks.items()}
            with torch.no_grad():
                seconds = processor_time(sides, 8 if name.startswith("ResNet") else 40)
            table.add(name, f"batch {batch}", seconds, "s")
    table.write(OUTPUT)


if __name__ == "__main__":
    main()
