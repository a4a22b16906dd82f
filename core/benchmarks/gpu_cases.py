"""What ``gpu.py`` times: operators stage by stage, then networks of torchvision."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gpu_models
import peers
import torch
import unfold
from gpu_clock import Clock, Run
from torch import Tensor

import acmix
from acmix.backends import cuda

# Channels of a head and size of the map in the four stages of ResNet-ACmix-50; four heads.
STAGES, BATCH = ((16, 56), (32, 28), (64, 14), (128, 7)), 32
SMALL_STAGES, SMALL_BATCH = ((2, 8),), 1
DTYPES = (torch.float32, torch.float16)
HEADS = 4


class Case(NamedTuple):
    """One thing to time; ``run`` adds its rows to the report."""

    name: str
    run: Callable[[], None]


def all_cases(clock: Clock, report) -> Iterator[Case]:
    """All of them, the most telling first."""
    unfold.register()
    operators = Operators(clock, report)
    stages = STAGES if clock.is_real else SMALL_STAGES
    yield Case("bandwidth", operators.measure_bandwidth)
    for dtype in DTYPES:
        for stage in stages:
            for kind in (operators.paths, operators.convolution, operators.attention):
                yield Case(f"{kind.__name__} {stage} {dtype}", partial(kind, *stage, dtype))
    models = gpu_models.Models(clock, report)
    for settings in models.settings():
        yield Case(f"{settings}", partial(models.run, settings))


class Operators:
    """Operators of every stage, on each backend that can run them.

    Args:
        clock: Times them.
        report: Takes the rows.
    """

    def __init__(self, clock: Clock, report) -> None:
        self.clock, self.report, self.peak = clock, report, float("nan")
        self.batch = BATCH if clock.is_real else SMALL_BATCH
        self.backends = ["cuda", "torch"]
        with self._device():
            reasons = cuda.why_not("convolution_path", torch.zeros(1, device=clock.device))
        if reasons:
            self.backends.remove("cuda")
            report.add("left_out", f"our kernels: {'; '.join(reasons)}")

    def measure_bandwidth(self) -> None:
        """What the shares of the others refer to."""
        self.peak = self.clock.bandwidth()
        self.report.content["device"]["copied_bytes_per_second"] = (
            self.peak if self.clock.is_real else None
        )

    def attention(self, depth: int, size: int, dtype: torch.dtype) -> None:
        """Sliding window attention, 7×7, with the unfold algorithm and flex_attention."""
        shape = (self.batch, HEADS, depth, size, size)
        maps = [self._random(dtype, *shape) for _ in range(3)]
        attend = partial(acmix.sliding_window_attention, kernel_size=7)
        sides = {b: partial(attend, *maps, backend=b) for b in [*self.backends, "unfold"]}
        moved = 4 * maps[0].nbytes
        others = {}
        if self.clock.is_real:
            flex = peers.flex_attention(size, device="cuda")
            if flex is None:
                self.report.add("left_out", f"flex_attention at {size}²")
            else:
                others["flex_attention"] = partial(flex, *(x.detach() for x in maps))
        else:
            self.report.add("left_out", "flex_attention: compiled for a device alone")
        self._time(f"attention {size}², D = {depth}", dtype, sides, maps, moved, others)

    def convolution(self, depth: int, size: int, dtype: torch.dtype) -> None:
        """The convolution path; torch's is a folded grouped convolution of cuDNN."""
        qkv = self._random(dtype, self.batch, 3 * HEADS * depth, size, size)
        inputs = [qkv, *self._path_weights(depth, dtype)]
        sides = {b: partial(acmix.convolution_path, *inputs, backend=b) for b in self.backends}
        name = f"convolution path {size}², D = {depth}"
        self._time(name, dtype, sides, inputs, qkv.nbytes * 4 // 3)

    def paths(self, depth: int, size: int, dtype: torch.dtype) -> None:
        """Both paths on one set of projections."""
        qkv = self._random(dtype, self.batch, 3 * HEADS * depth, size, size)
        position = self._random(dtype, depth, size, size)
        weights = self._path_weights(depth, dtype)
        path = partial(acmix.sliding_window_paths, qkv, position, *weights)
        sides = {b: partial(path, backend=b) for b in self.backends}
        inputs = [qkv, position, *weights]
        self._time(f"both paths {size}², D = {depth}", dtype, sides, inputs, qkv.nbytes * 5 // 3)

    def _time(
        self,
        name: str,
        dtype: torch.dtype,
        sides: dict[str, Run],
        inputs: list[Tensor],
        moved: int,
        others: dict[str, Run] | None = None,
    ) -> None:
        """Inference, its CUDA graphs, and training; ``moved`` is the least bytes of a forward."""
        with self._device():
            with torch.no_grad():
                self._add(name, dtype, "inference", sides | (others or {}), moved)
                graphs = {side: self.clock.graph(run) for side, run in sides.items()}
                self._add(name, dtype, "inference, CUDA graph", graphs, moved)
            steps = {side: partial(_train, run, inputs) for side, run in sides.items()}
            self._add(name, dtype, "training", steps, 3 * moved)

    def _add(self, name: str, dtype: torch.dtype, mode: str, sides: dict, moved: int) -> None:
        timed = self.clock.alternate(sides)
        first = next(iter(timed.values())).median
        for side, figures in timed.items():
            row = dict(case=name, dtype=str(dtype), mode=mode, side=side)
            if self.clock.is_real:
                share = moved / (figures.median / 1e3) / self.peak
                row |= dict(milliseconds=figures._asdict(), ratio_to_first=figures.median / first)
                row |= dict(least_bytes=moved, bandwidth_share=round(share, 3))
            self.report.add("rows", row)

    def _random(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.clock.device).to(dtype).requires_grad_()

    def _path_weights(self, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        maps = 3 * HEADS
        return self._random(dtype, 9, maps), self._random(dtype, HEADS * depth, 9, 3, 3)

    def _device(self) -> AbstractContextManager:
        """The device, or the emulated one, or, without a compiler, the CPU as it is."""
        if self.clock.is_real:
            return nullcontext()
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
        import cuda_emulator
        from cuda_emulator.device import emulated_device

        reason = cuda_emulator.why_not()
        if reason is None:
            return emulated_device(cuda_emulator.EmulatedRuntime())
        self.report.add("left_out", reason)
        return nullcontext()


def _train(run: Run, inputs: list[Tensor]) -> None:
    """Forward and backward; the output is its own gradient, which costs nothing."""
    out = run()
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.grad(outs, inputs, [x.detach() for x in outs])
