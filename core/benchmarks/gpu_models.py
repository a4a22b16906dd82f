"""Networks of torchvision as they are, and with our layers in them, for ``gpu.py``."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from gpu_clock import Clock, Run
from torch import Tensor, nn

import acmix
from acmix.backends import cuda

_BATCH, _SIZE = 32, 224
_SMALL_BATCH, _SMALL_SIZE = 2, 56


class Settings(NamedTuple):
    """How a network runs."""

    family: str
    amp: bool
    channels_last: bool
    mode: str


class ShiftedWindows(nn.Module):
    """``WindowACmix`` where torchvision's Swin has its shifted window attention.

    Args:
        plain: The module that it stands for.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        window = tuple(plain.window_size)
        self.shift = plain.shift_size
        self.layer = acmix.WindowACmix(plain.qkv.in_features, window, plain.num_heads)
        self.masks: dict[tuple, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same; an axis of one window is not shifted."""
        size, window = x.shape[1:3], self.layer.window_size
        shift = [s if w < n else 0 for s, w, n in zip(self.shift, window, size, strict=True)]
        if not any(shift):
            return self.layer(x)
        rolled = x.roll([-s for s in shift], (1, 2))
        out = self.layer(rolled, self._mask(size, shift, x.device))
        return out.roll(shift, (1, 2))

    def _mask(self, size: torch.Size, shift: list[int], device: torch.device) -> Tensor:
        """-100 between pixels that were no neighbours before the shift, (nW, L, L)."""
        key = (*size, *shift, device)
        if key not in self.masks:
            height, width = self.layer.window_size
            regions = torch.zeros(size)
            for axis, (window, by) in enumerate(zip((height, width), shift, strict=True)):
                index = torch.arange(size[axis])
                part = (index >= size[axis] - window).int() + (index >= size[axis] - by).int()
                regions += part.view(-1, 1) * 3 if axis == 0 else part
            tiles = regions.view(size[0] // height, height, size[1] // width, width)
            labels = tiles.transpose(1, 2).flatten(0, 1).flatten(1)
            apart = labels[:, None] != labels[:, :, None]
            self.masks[key] = torch.where(apart, -100.0, 0.0).to(device)
        return self.masks[key]


class Models:
    """Whole networks in every way that they are run.

    Args:
        clock: Times them.
        report: Takes the rows.
    """

    def __init__(self, clock: Clock, report) -> None:
        self.clock, self.report = clock, report

    def settings(self) -> Iterator[Settings]:
        """All of them; none where torchvision is not installed."""
        try:
            import torchvision  # noqa: F401
        except ImportError as error:
            self.report.add("left_out", f"networks: {error}")
            return
        for amp in (False, True):
            for mode in ("inference", "training", "inference, CUDA graph"):
                yield Settings("swin", amp, False, mode)
                for channels_last in (True, False):
                    yield Settings("resnet", amp, channels_last, mode)

    def run(self, settings: Settings) -> None:
        """Add a row for each side."""
        torch.manual_seed(0)
        makers = self._swins() if settings.family == "swin" else self._resnets()
        batch, size = (_BATCH, _SIZE) if self.clock.is_real else (_SMALL_BATCH, _SMALL_SIZE)
        image = torch.randn(batch, 3, size, size, device=self.clock.device)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        image = image.to(memory_format=layout)
        sides = {}
        for name, make in makers.items():
            network = make().to(self.clock.device).to(memory_format=layout)
            sides[name] = self._runner(network, image, settings)
        timed = self.clock.alternate(sides)
        first = next(iter(timed.values())).median
        for name, figures in timed.items():
            row = dict(case=settings.family, side=name, **settings._asdict(), batch=batch)
            if self.clock.is_real:
                row |= dict(milliseconds=figures._asdict(), ratio_to_first=figures.median / first)
            self.report.add("rows", row)

    def _runner(self, network: nn.Module, image: Tensor, settings: Settings) -> Run:
        kind = self.clock.device

        def forward() -> Tensor:
            # The weights of a cached cast would be freed while a graph still reads them.
            cached = "graph" not in settings.mode
            with torch.autocast(kind, torch.bfloat16, settings.amp, cache_enabled=cached):
                return network(image)

        def step() -> None:
            forward().float().sum().backward()
            network.zero_grad(set_to_none=True)

        @torch.no_grad()
        def infer() -> Tensor:
            return forward()

        network.train(settings.mode == "training")
        if settings.mode == "training":
            return step
        return self.clock.graph(infer) if "graph" in settings.mode else infer

    def _resnets(self) -> dict[str, Callable[[], nn.Module]]:
        from torchvision.models import resnet

        def plain() -> nn.Module:
            depths = [3, 4, 6, 3] if self.clock.is_real else [1, 1, 1, 1]
            return resnet.ResNet(resnet.Bottleneck, depths)

        def with_acmix(backend: str) -> nn.Module:
            network = plain()
            acmix.replace_convolutions(network, copy_weights=False, backend=backend)
            return network

        sides = {f"acmix, {b}": lambda b=b: with_acmix(b) for b in self._backends()}
        return {"resnet50": plain} | sides

    def _swins(self) -> dict[str, Callable[[], nn.Module]]:
        from torchvision.models import swin_transformer as swin

        def plain() -> nn.Module:
            sizes = ([2, 2, 6, 2], [3, 6, 12, 24], 96) if self.clock.is_real else ([2], [6], 24)
            depths, heads, width = sizes
            return swin.SwinTransformer([4, 4], width, depths, heads, [7, 7])

        def with_acmix() -> nn.Module:
            network = plain()
            for name, module in list(network.named_modules()):
                if isinstance(module, swin.ShiftedWindowAttention):
                    network.set_submodule(name, ShiftedWindows(module))
            return network

        return {"swin_t": plain, "acmix": with_acmix}

    def _backends(self) -> list[str]:
        reasons = cuda.why_not("convolution_path", torch.zeros(1, device=self.clock.device))
        return ["torch"] if reasons else ["cuda", "torch"]
