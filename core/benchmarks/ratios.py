"""Speed and memory of operators and models against what they replace: ``make bench``.

Sides of a case alternate within one run. The table goes to ``ratios.csv`` beside this file; the
figures are those of the machine it ran on and mean nothing on another.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import peers
import torch
import torchvision
import unfold
from models import models, unfolded
from timing import Table, alternate, keep_memory, maps_last, training_step
from torch import Tensor

import acmix
from acmix_resnet import ACmixResNet

BATCH = 4
# Channels of a head and size of the map in the four stages of ResNet-ACmix-50; four heads.
STAGES = ((16, 56), (32, 28), (64, 14), (128, 7))
# Heads of 32 channels and size of the map in those of Swin-ACmix-T; windows of 7×7.
SWIN_STAGES = ((3, 56), (6, 28), (12, 14), (24, 7))
OUTPUT = Path(__file__).with_name("ratios.csv")


def attention_stages(table: Table) -> None:
    """Sliding window attention, backend by backend, and the matrix product's rate."""
    for depth, size in STAGES:
        shape = (BATCH, 4, depth, size, size)
        maps = [maps_last(torch.randn(shape)).requires_grad_() for _ in range(3)]
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


def window_stages(table: Table) -> None:
    """Attention inside the windows of a map, fused and as torch's products on copied windows."""
    for heads, size in SWIN_STAGES:
        qkv = torch.randn(BATCH, size, size, 3 * heads * 32, requires_grad=True)
        bias = torch.randn(heads, 49, 49, requires_grad=True)
        attend = partial(acmix.map_window_attention, qkv, bias, window_size=(7, 7))
        sides = {name: partial(attend, backend=name) for name in ("cpu", "torch")}
        case = f"windows of 7×7, {size}², N = {heads}"
        with torch.no_grad():
            table.add(case, "inference", alternate(sides), "s")
        trained = alternate({n: lambda run=run: run().sum().backward() for n, run in sides.items()})
        table.add(case, "training", trained, "s")


def growth(table: Table) -> None:
    """Time per pixel from 28² to 224² and from one image to 64, and of one thread and two."""
    sizes = {f"{size}²": (1, size) for size in (28, 56, 112, 224)}
    batches = {f"{batch} images": (batch, 28) for batch in (1, 4, 16, 64)}
    for case, shapes in (("maps", sizes), ("batches", batches)):
        layers = {name: _layer_on(batch, size) for name, (batch, size) in shapes.items()}
        with torch.no_grad():
            seconds = alternate(layers, settle=3)
        pixels = {name: batch * size**2 for name, (batch, size) in shapes.items()}
        each = {n: [1e9 * s / pixels[n] for s in values] for n, values in seconds.items()}
        table.add(f"ACmix2d(64, 64), growing {case}", "inference", each, "ns a pixel", "± 15 %")
    threads = torch.get_num_threads()
    run = _layer_on(16, 56)

    def on(count: int) -> None:
        torch.set_num_threads(count)
        run()

    with torch.no_grad():
        sides = {f"threads: {count}": partial(on, count) for count in (1, threads)}
        seconds = alternate(sides, settle=3)
    torch.set_num_threads(threads)
    table.add("ACmix2d(64, 64) at 56², threads", "inference", seconds, "s", "second ≤ 0.56")


def _layer_on(batch: int, size: int) -> partial:
    layer = acmix.ACmix2d(64, 64).to(memory_format=torch.channels_last).eval()
    x = torch.randn(batch, 64, size, size).to(memory_format=torch.channels_last)
    return partial(layer, x)


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
    step = training_step(net.to(memory_format=torch.channels_last).train(), x)
    step()
    step()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def _path_weights(depth: int) -> tuple[Tensor, Tensor]:
    """Layer and kernels of the convolution path for four heads of this depth."""
    return torch.randn(9, 12), torch.randn(4 * depth, 9, 3, 3)


def main() -> None:
    """Run everything, or one part of it."""
    parts = dict(
        attention=attention_stages,
        convolution=convolution_stages,
        windows=window_stages,
        growth=growth,
        models=models,
        unfolded=unfolded,
        memory=memory,
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {list(parts)}; all if none")
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_memory()
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
