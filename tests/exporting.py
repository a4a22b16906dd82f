"""Layers and backbones as exporters take them, and what their exports are held to."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acmix import GlobalACmix, WindowACmix
from acmix.mm.formats import FileFormat, Onnx, Request, Run
from families import FAMILIES
from layers import LAYERS, randomised

# Of these the kernels, windows and reductions divide few, and two are smaller than a window.
SIZES = ((11, 10), (9, 7), (8, 12), (2, 3), (1, 1), (16, 21))
IMAGES = ((96, 128), (64, 64), (65, 97), (33, 50), (20, 30), (130, 75))
BATCHES = (1, 3)


class OnMaps(nn.Module):
    """A layer of any kind that takes and gives (B, C, H, W)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.channels = getattr(layer, "in_channels", layer.dim)
        self.eval()  # all of it: an exporter sets a mode and puts back that of the whole

    @classmethod
    def of(cls, name: str, **options) -> "OnMaps":
        """A small layer, with no parameter that hides a mistake."""
        return cls(randomised(LAYERS[name].make(**options)))

    def example(self, height: int, width: int, batch: int = 2) -> Tensor:
        return torch.randn(batch, self.channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, WindowACmix):
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if isinstance(self.layer, GlobalACmix):
            # One token in front of the pixels, that is their mean.
            pixels = x.flatten(2).transpose(1, 2)
            tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)
            return self.layer(tokens, x.shape[2:])[:, 1:].transpose(1, 2).reshape(x.shape)
        return self.layer(x)


def backbone(name: str, **options) -> nn.Module:
    """A small backbone that gives all its maps, with no parameter that hides a mistake."""
    torch.manual_seed(0)
    model = FAMILIES[name].build(out_indices=FAMILIES[name].every_stage, **options).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def error_at(run: Callable[[Tensor], Sequence[Tensor] | Tensor], model: nn.Module, x: Tensor):
    """Largest difference of the outputs of ``run`` from those of the model in eager mode."""
    actual, expected = ((out,) if isinstance(out, Tensor) else out for out in (run(x), model(x)))
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape, f"{tuple(x.shape)}"
    return max((mine - theirs).abs().max() for mine, theirs in zip(actual, expected, strict=True))


def assert_equal_at(
    run: Callable[[Tensor], Sequence[Tensor] | Tensor],
    model: nn.Module,
    sizes: Sequence[tuple[int, int]],
    channels: int = 3,
    tolerance: float = 1e-4,
) -> None:
    """Outputs of ``run`` are those of the model in eager mode, at all sizes and batches."""
    for size in sizes:
        for batch in BATCHES:
            error = error_at(run, model, torch.randn(batch, channels, *size))
            assert error <= tolerance, f"{batch} of {size}: {error:.2g}"


def in_onnxruntime(
    model: nn.Module, x: Tensor, path: Path, *, dynamo: bool, any_size: bool = True
) -> Run:
    """The model as an ONNX file by one of torch's two exporters, in onnxruntime."""
    for package in Onnx.packages:
        pytest.importorskip(package, reason=f"{package} is missing: pip install acmix[onnx]")
    return written(Onnx(dynamo), model, x, path, any_size=any_size)


def written(
    kind: FileFormat, model: nn.Module, x: Tensor, path: Path, *, any_size: bool = True
) -> Run:
    """The model as a file, read again."""
    kind.write(model, path, Request([x], dynamic=any_size))
    return kind.load(path)


def in_openvino(path: Path) -> Run:
    """An ONNX file as a function that OpenVINO compiles, in single precision on any processor."""
    openvino = pytest.importorskip("openvino", reason="pip install openvino")
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precision)
    return lambda x: tuple(torch.from_numpy(out) for out in compiled(x.numpy()).values())
