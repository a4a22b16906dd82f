"""Networks of others with our layers in them, for tests of other people's tools."""

import pytest
import torch
from torch import Tensor, nn

import acmix
from acmix.geometry import missing, pad_missing

SHIFTS = ("learnable", "fixed", "tensor")


def weighted(layer: nn.Module) -> list[str]:
    """Names of all children with a weight, but for norms."""
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    return [
        name
        for name, module in layer.named_modules()
        if name and hasattr(module, "weight") and not isinstance(module, norms)
    ]


def _unit(channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(
        channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.SiLU())


class CSP(nn.Module):
    """Stem, and a stage whose second half of channels goes past a residual pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = _unit(3, 8, 3, 2), _unit(8, 16, 3, 2)
        self.pair = nn.Sequential(_unit(8, 8), _unit(8, 8, 3))
        self.merge, self.head = _unit(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.down(self.stem(x)).chunk(2, dim=1)
        x = self.merge(torch.cat([left, right + self.pair(right)], dim=1))
        return self.head(x.mean((2, 3)))


def _resnet18() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="pip install torchvision")
    return torchvision.models.resnet18(num_classes=5)


def _timm_resnet50() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install timm)")
    # No branch starts at zero, so that all layers count.
    return timm.create_model("resnet50", num_classes=5, zero_init_last=False)


class YOLO(nn.Module):
    """YOLO11n by one tensor of any size: what is decoded, or in training what losses read."""

    def __init__(self) -> None:
        super().__init__()
        tasks = pytest.importorskip(
            "ultralytics.nn.tasks", reason="ultralytics is not installed (pip install ultralytics)"
        )
        self.network = tasks.DetectionModel("yolo11n.yaml", nc=5, verbose=False)
        # As its exporter does: anchors of the size that there is.
        self.network.model[-1].dynamic = True

    def forward(self, x: Tensor) -> Tensor:
        found = self.network(
            pad_missing(x, [0, missing(x.shape[3], 32), 0, missing(x.shape[2], 32)])
        )
        return torch.cat([found["boxes"], found["scores"]], dim=1) if self.training else found[0]


NETWORKS = {
    "resnet18": _resnet18,
    "timm-resnet50": _timm_resnet50,
    "csp": CSP,
    "yolo11n": YOLO,
}
# Without ours in it: its forward loops over what it is given, and its head keeps tensors of a call.
FX_REFUSES = TORCH_FUNC_REFUSES = {"yolo11n"}
# Its exporter traces; torch.export leaves assertions of one size in its anchors.
PROGRAMS_REFUSE = {"yolo11n"}


def build_network(name: str) -> nn.Module:
    """A network of somebody else, in evaluation, with ``ACmix2d`` in place of convolutions."""
    network = NETWORKS[name]().eval()
    acmix.replace_convolutions(network, kernel_att=3, copy_weights=False)
    return network


def images(size: int = 33) -> Tensor:
    """Input of a network."""
    return torch.randn(2, 3, size, size)
