"""Whole models and their plain twins, in every way that people run them: part of ``make bench``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from timing import Table, alternate, training_step
from torch import Tensor, nn

import acmix
from acmix.modules.children import project
from acmix_pvt import ACmixPVT
from acmix_resnet import ACmixResNet
from acmix_san import ACmixSAN
from acmix_swin import ACmixSwinTransformer

BATCH = 4


@dataclass
class Twins:
    """A model and what it is compared with.

    Attributes:
        sides: Networks by name, the plain one first.
        last: Whether they are faster with maps stored channels last.
        inference: Target, a ratio to the plain one.
        training: The same in training.
        compiled: Whether compiled runs are timed; compiling takes minutes.
    """

    sides: dict[str, Callable[[], nn.Module]]
    last: bool
    inference: float
    training: float
    compiled: bool = False


TWINS = {
    "ResNet-ACmix-50 / resnet50": Twins(
        {
            "resnet50": torchvision.models.resnet50,
            "acmix": partial(ACmixResNet, 50),
            "deployed": lambda: acmix.deploy(ACmixResNet(50)),
            "without its paths": lambda: without_paths(ACmixResNet(50)),
        },
        last=True,
        inference=1.05,
        training=1.10,
        compiled=True,
    ),
    "Swin-ACmix-T / swin_t": Twins(
        {
            "swin_t": torchvision.models.swin_t,
            "acmix": partial(ACmixSwinTransformer, drop_path_rate=0.2),
            "deployed": lambda: acmix.deploy(ACmixSwinTransformer()),
        },
        last=False,
        inference=1.06,
        training=1.10,
        compiled=True,
    ),
    "PVT-ACmix-T / attention alone": Twins(
        {
            "attention": partial(ACmixPVT, mix="attention"),
            "acmix": ACmixPVT,
            "deployed": lambda: acmix.deploy(ACmixPVT()),
        },
        last=False,
        inference=1.08,
        training=1.12,
    ),
    "SAN-ACmix-10 / attention alone": Twins(
        {
            "attention": partial(ACmixSAN, 10, mix="attention"),
            "acmix": partial(ACmixSAN, 10),
            "deployed": lambda: acmix.deploy(ACmixSAN(10)),
        },
        last=True,
        inference=1.08,
        training=1.05,
    ),
}


def models(table: Table) -> None:
    """Every model in every way."""
    for case, twins in TWINS.items():
        torch.manual_seed(0)
        networks = {name: make() for name, make in twins.sides.items()}
        if twins.last:
            networks = {n: net.to(memory_format=torch.channels_last) for n, net in networks.items()}
        image = torch.randn(BATCH, 3, 224, 224)
        if twins.last:
            image = image.to(memory_format=torch.channels_last)
        for way, runs in _inference(networks, image, twins.compiled):
            with torch.no_grad():
                table.add(case, way, alternate(runs), "s", f"acmix ≤ {twins.inference:.2f}")
        trained = {name: networks[name] for name in list(networks) if name != "deployed"}
        for way, runs in _training(trained, image, twins.compiled):
            table.add(case, way, alternate(runs), "s", f"acmix ≤ {twins.training:.2f}")


def unfolded(table: Table) -> None:
    """Against the authors' algorithm, and against SAN's on unfolded values."""
    pairs = {
        "SAN-ACmix-10, unfolded values": (partial(ACmixSAN, 10), "unfold ≥ 3"),
        "ResNet-ACmix-50, unfold": (partial(ACmixResNet, 50), "unfold ≥ 10"),
    }
    x = torch.randn(BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    for case, (make, target) in pairs.items():
        sides = dict(acmix=make(), unfold=make(backend="unfold"))
        nets = {name: net.to(memory_format=torch.channels_last) for name, net in sides.items()}
        with torch.no_grad():
            runs = {name: partial(net.eval(), x) for name, net in nets.items()}
            table.add(case, "inference", alternate(runs), "s", target)
        steps = {name: training_step(net.train(), x) for name, net in nets.items()}
        table.add(case, "training", alternate(steps), "s", target)


def _inference(
    networks: dict[str, nn.Module], image: Tensor, compiled: bool
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    def autocast(net: nn.Module) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return net(image)

    nets = {name: net.eval() for name, net in networks.items()}
    yield "inference", {name: partial(net, image) for name, net in nets.items()}
    yield "inference, batch 1", {name: partial(net, image[:1]) for name, net in nets.items()}
    yield "inference, bfloat16", {name: partial(autocast, net) for name, net in nets.items()}
    if compiled:
        torch._dynamo.reset()
        frozen = partial(torch.compile, options={"freezing": True})
        few = [name for name in nets if name != "without its paths"]
        yield "inference, compiled", {name: partial(frozen(nets[name]), image) for name in few}


def _training(
    networks: dict[str, nn.Module], image: Tensor, compiled: bool
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    nets = {name: net.train() for name, net in networks.items()}
    yield "training", {name: training_step(net, image) for name, net in nets.items()}
    if compiled:
        torch._dynamo.reset()
        few = [name for name in nets if name != "without its paths"]
        steps = {name: training_step(torch.compile(nets[name]), image) for name in few}
        yield "training, compiled", steps


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
        qkv = project(x, self.layer.conv1, self.layer.conv2, self.layer.conv3)
        queries = qkv[:, : self.layer.dim, ::step, ::step]
        return queries.contiguous(memory_format=torch.channels_last)


def without_paths(net: nn.Module) -> nn.Module:
    """Put ``Projections`` in the place of every layer."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, acmix.ACmix2d):
            net.set_submodule(name, Projections(layer))
    return net
