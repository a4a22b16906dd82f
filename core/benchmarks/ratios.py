"""Speed and memory of operators and models against what they replace: ``make bench``.

Sides of a case alternate within one run. The table goes to ``ratios.csv`` beside this file; the
figures are those of the machine it ran on and mean nothing on another.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import torch
import torchvision
import unfold
from timing import Table, alternate
from torch import Tensor, nn

import acmix
from acmix_pvt import ACmixPVT
from acmix_resnet import ACmixResNet
from acmix_san import ACmixSAN
from acmix_swin import ACmixSwinTransformer

BATCH = 4
# Channels of a head and size of the map in the four stages of ResNet-ACmix-50; four heads.
STAGES = ((16, 56), (32, 28), (64, 14), (128, 7))
OUTPUT = Path(__file__).with_name("ratios.csv")


def attention_stages(table: Table) -> None:
    """Sliding window attention, backend by backend, and the matrix product's rate."""
    for depth, size in STAGES:
        shape = (BATCH, 4, depth, size, size)
        maps = [_channels_last(torch.randn(shape)).requires_grad_() for _ in range(3)]
        attend = partial(acmix.sliding_window_attention, *maps)
        sides = {name: partial(attend, backend=name) for name in ("cpu", "torch", "unfold")}
        others = dict(flex_attention=peers.flex_attention(size), natten=peers.natten())
        plain = [x.detach() for x in maps]
        others = {name: partial(run, *plain) for name, run in others.items() if run is not None}
        with torch.no_grad():
            forward = alternate(sides | others)
        table.add(f"sliding window {size}², D = {depth}", "inference", forward, "s")
        trained = alternate({n: lambda run=run: run().sum().backward() for n, run in sides.items()})
        table.add(f"sliding window {size}², D = {depth}", "training", trained, "s")
        operations = 2 * 49 * 4 * depth * size**2 * BATCH
        a = torch.randn(1024, 1024)
        with torch.no_grad():
            pair = alternate({"matrix product": lambda a=a: a @ a, "sliding window": sides["cpu"]})
        counts = {"matrix product": 1024**3, "sliding window": operations}
        rates = {name: [counts[name] / s / 1e9 for s in seconds] for name, seconds in pair.items()}
        table.add(f"multiply-adds, {size}²", "inference", rates, "G/s", "sliding window ≥ 0.35")


def convolution_stages(table: Table) -> None:
    """The convolution path, fused and as torch's own layer and grouped convolution."""
    for depth, size in STAGES:
        qkv = torch.randn(BATCH, 12 * depth, size, size).to(memory_format=torch.channels_last)
        path = partial(acmix.convolution_path, qkv.requires_grad_(), *_path_weights(depth))
        sides = {name: partial(path, backend=name) for name in ("cpu", "torch")}
        case = f"convolution path {size}², D = {depth}"
        with torch.no_grad():
            table.add(case, "inference", alternate(sides), "s")
        trained = alternate({n: lambda run=run: run().sum().backward() for n, run in sides.items()})
        table.add(case, "training", trained, "s")


def growth(table: Table) -> None:
    """Four times the pixels should take about four times as long."""
    attention, path = {}, {}
    for size in (56, 112):
        maps = [_channels_last(torch.randn(BATCH, 4, 16, size, size)) for _ in range(3)]
        attention[f"{size}²"] = partial(acmix.sliding_window_attention, *maps)
        qkv = torch.randn(BATCH, 192, size, size).to(memory_format=torch.channels_last)
        path[f"{size}²"] = partial(acmix.convolution_path, qkv, *_path_weights(16))
    with torch.no_grad():
        for case, sides in (("sliding window", attention), ("convolution path", path)):
            table.add(f"{case}, growth", "inference", alternate(sides), "s", "second ≤ 4.4")


def models(table: Table) -> None:
    """Whole models against their baselines, each in its better memory format."""
    torch.manual_seed(0)
    pairs = {
        "ResNet-ACmix-50 and resnet50": (
            {
                "resnet50": torchvision.models.resnet50(),
                "acmix": ACmixResNet(50),
                "acmix without its paths": _without_paths(ACmixResNet(50)),
            },
            torch.channels_last,
            "acmix ≤ 1.0, training ≤ 1.1",
        ),
        "Swin-ACmix-T and swin_t": (
            dict(
                swin_t=torchvision.models.swin_t(), acmix=ACmixSwinTransformer(drop_path_rate=0.2)
            ),
            torch.contiguous_format,
            "acmix ≤ 1.08, training ≤ 1.10",
        ),
        "PVT-ACmix-T and PVT-T": (
            {"pvt": ACmixPVT(mix="attention"), "acmix": ACmixPVT()},
            torch.contiguous_format,
            "acmix ≤ 1.10 inference",
        ),
        "SAN-ACmix-10, unfolded values": (
            dict(acmix=ACmixSAN(10), unfold=ACmixSAN(10, backend="unfold")),
            torch.channels_last,
            "unfold ≥ 3 inference",
        ),
        "ResNet-ACmix-50, unfold": (
            dict(acmix=ACmixResNet(50), unfold=ACmixResNet(50, backend="unfold")),
            torch.channels_last,
            "unfold ≥ 12, training ≥ 10",
        ),
    }
    image = torch.randn(BATCH, 3, 224, 224)
    for case, (sides, memory_format, target) in pairs.items():
        x = image.to(memory_format=memory_format)
        networks = {name: net.to(memory_format=memory_format) for name, net in sides.items()}
        with torch.no_grad():
            runs = {n: partial(net.eval(), x) for n, net in networks.items()}
            table.add(case, "inference", alternate(runs), "s", target)
        steps = {n: _training_step(net.train(), x) for n, net in networks.items()}
        table.add(case, "training", alternate(steps), "s", target)


class Projections(nn.Module):
    """The 1×1 convolutions of a layer alone: what no faster path can save.

    Args:
        layer: The layer whose queries are given out.
    """

    def __init__(self, layer: acmix.ACmix2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to the size of the layer's output."""
        step = self.layer.stride
        qkv = self.layer._project(x)
        queries = qkv[:, : self.layer.dim, ::step, ::step]
        return queries.contiguous(memory_format=torch.channels_last)


def _without_paths(net: nn.Module) -> nn.Module:
    for name, layer in list(net.named_modules()):
        if isinstance(layer, acmix.ACmix2d):
            net.set_submodule(name, Projections(layer))
    return net


def memory(table: Table) -> None:
    """Peak resident memory of a training step, each model in a process of its own."""
    figures = {}
    for name in ("resnet50", "acmix"):
        command = [sys.executable, __file__, "--peak-memory", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[name] = [float(done.stdout)]
    table.add("peak memory, ResNet-50", "training", figures, "MiB", "acmix ≤ 1.2")


def print_peak_memory(name: str) -> None:
    """Peak resident MiB of the process of a training step, for ``memory``; on Linux.

    The kernel's own figure: that of ``getrusage`` begins with the parent's peak.
    """
    net = torchvision.models.resnet50() if name == "resnet50" else ACmixResNet(50)
    x = torch.randn(BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    step = _training_step(net.to(memory_format=torch.channels_last).train(), x)
    step()
    step()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def _training_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    def step() -> None:
        out = net(x)
        (out[-1] if isinstance(out, tuple) else out).sum().backward()
        net.zero_grad(set_to_none=True)

    return step


def _path_weights(depth: int) -> tuple[Tensor, Tensor]:
    """Layer and kernels of the convolution path for four heads of this depth."""
    return torch.randn(9, 12), torch.randn(4 * depth, 9, 3, 3)


def _channels_last(x: Tensor) -> Tensor:
    flat = x.flatten(1, 2).to(memory_format=torch.channels_last)
    return flat.unflatten(1, x.shape[1:3]).detach()


def main() -> None:
    """Run everything, or one part of it."""
    parts = dict(
        attention=attention_stages,
        convolution=convolution_stages,
        growth=growth,
        models=models,
        memory=memory,
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {list(parts)}; all if none")
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unfold.register()
    if args.peak_memory:
        print_peak_memory(args.peak_memory)
        return
    table = Table()
    print(table.device)
    for name in args.parts or parts:
        parts[name](table)
    table.write(OUTPUT)
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main()
