"""CUDA kernels of the convolution path."""

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix import ops
from acmix.backends.cuda.convolution_tiles import FOUR, cut_path, cut_sums
from acmix.backends.cuda.launcher import launch
from acmix.backends.cuda.sources import TYPES, path_window
from acmix.backends.cuda.tiles import check_plane
from acmix.backends.folding import MAX_FOLDED_MAPS, fold, fold_backward
from acmix.geometry import ceil_div, output_size
from acmix.ops.convolution import convolution_path
from acmix.ops.registration import kernel

__all__ = ["convolution_path", "convolve", "convolve_backward"]


@kernel(ops.convolution, "CUDA")
def _forward(
    maps: Tensor, rest: Tensor | None, layer: Tensor, kernels: Tensor, stride: int
) -> Tensor:
    return convolve(_joined(maps, rest), layer, kernels, stride)


@kernel(ops.convolution_backward, "CUDA")
def _backward(
    grad: Tensor,
    maps: Tensor,
    rest: Tensor | None,
    layer: Tensor,
    kernels: Tensor,
    stride: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    joined = _joined(maps, rest)
    dmaps = torch.empty_like(joined)
    weights = convolve_backward(grad, joined, layer, kernels, stride, dmaps, add=False)
    if rest is None:
        return dmaps, None, *weights
    first, others = dmaps.split((maps.shape[1], rest.shape[1]), dim=1)
    return first.contiguous(), others.contiguous(), *weights


def _joined(maps: Tensor, rest: Tensor | None) -> Tensor:
    return maps.contiguous() if rest is None else torch.cat([maps, rest], dim=1)


def convolve(maps: Tensor, fc_weight: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """The path of contiguous maps, (B, maps, D, H, W), as (B, D * outs, H', W')."""
    call = _Path(maps, fc_weight, kernels, stride)
    out = maps.new_empty(maps.shape[0], kernels.shape[0], *call.out_size)
    if out.numel() > 0:
        call.forward(maps, out)
    return out


def convolve_backward(
    grad: Tensor,
    maps: Tensor,
    fc_weight: Tensor,
    kernels: Tensor,
    stride: int,
    dmaps: Tensor,
    *,
    add: bool,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of contiguous maps to ``dmaps``, or add it; return the weights'."""
    call = _Path(maps, fc_weight, kernels, stride)
    if grad.numel() == 0:
        return torch.zeros_like(fc_weight), torch.zeros_like(kernels)
    grad = grad.contiguous()
    dlayer = call.grad_maps(grad, maps, dmaps, add)
    dkernels = call.grad_kernels(grad, maps).to(kernels.dtype)
    if dlayer is None:
        return fold_backward(dkernels, kernels, fc_weight)[::-1]
    return dlayer.to(fc_weight.dtype), dkernels


class _Path:
    """The arguments of the kernels for one call: sizes, weights in fours, templates.

    Args:
        maps: (B, maps, D, H, W).
        fc_weight: (taps, columns), a column for a map of ones after those of the maps.
        kernels: (D * outs, taps, k, k), or with the layer folded in (D * outs, columns, k, k).
        stride: Of the convolution.
    """

    def __init__(self, maps: Tensor, fc_weight: Tensor, kernels: Tensor, stride: int) -> None:
        self.batch, self.maps, self.depth, *size = maps.shape
        self.in_size, self.dtype = tuple(size), maps.dtype
        self.out_size = output_size(size, stride)
        self.stride = min(stride, max(*size, 1))
        self.has_layer = self.maps > MAX_FOLDED_MAPS
        # Weights in the type of the sums.
        self.real = torch.float64 if maps.dtype == torch.float64 else torch.float32
        self.layer = fc_weight.to(self.real)
        taken = kernels if self.has_layer else fold(kernels, fc_weight)
        self.weights = taken.to(self.real).unflatten(0, (self.depth, -1)).flatten(3)
        self.outs, self.inputs = self.weights.shape[1:3]
        self.side = kernels.shape[-1]
        self.columns = fc_weight.shape[1] if self.has_layer else self.inputs
        self.window = path_window(self.side, self.stride)
        taps = self.inputs if self.has_layer else 0
        maps_and_taps = (self.depth, self.maps, self.columns, taps, self.outs)
        window = (*self.in_size, *self.out_size, self.side, self.stride)
        self.sizes = (*maps_and_taps, *window)
        check_plane(size, self.side, self.stride, 1)

    @property
    def step(self) -> int:
        """Loaded positions from one output to the next: what no window reads is left out."""
        return min(self.stride, self.side)

    @property
    def unit(self) -> int:
        """Maps that one pass of the layer's product makes."""
        if not self.has_layer:
            return 1
        return FOUR if self.window[0] == 0 else self.window[0] ** 2

    def forward(self, maps: Tensor, out: Tensor) -> None:
        """Fill ``out``."""
        planes = self.batch * self.depth
        cut = cut_path(
            self.out_size,
            planes,
            self.dtype,
            rows=self._rows(),
            step=self.step,
            kernel_size=self.side,
            inputs=self.inputs,
            unit=self.unit,
            whole=self.has_layer or self.outs > FOUR,
        )
        tensors = (maps, _in_fours(self.weights), self._product_weights(), out)
        args = (*tensors, planes, *self.sizes, cut.tiles_y, cut.tiles_x, cut.chunk)
        self._launch("convolution", "forward", self.window, cut, cut.grid, args)

    def grad_maps(self, grad: Tensor, maps: Tensor, dmaps: Tensor, add: bool) -> Tensor | None:
        """Fill or add to ``dmaps``; return the gradient of the layer where there is one."""
        planes = self.batch * self.depth
        cut = cut_path(
            self.in_size,
            planes,
            self.dtype,
            rows=self._rows(),
            step=1,
            kernel_size=self.side,
            inputs=self.outs,
            whole=self.inputs > FOUR,
            kept=self.inputs if self.has_layer else 0,
        )
        mirrored = self.weights.flip(3).transpose(1, 2)
        # (maps / 4, taps) in fours of maps.
        transposed = _in_fours(self.layer[:, : self.maps].T[None, :, :, None])
        summands = cut.grid * self.has_layer
        dlayer = maps.new_empty((summands, self.inputs, self.columns), dtype=self.real)
        tensors = (grad, maps, _in_fours(mirrored), transposed, dmaps, dlayer)
        args = (*tensors, planes, *self.sizes, cut.tiles_y, cut.tiles_x, cut.chunk, add)
        self._launch("convolution_maps", "grad_maps", self.window[:1], cut, cut.grid, args)
        return dlayer.sum(0) if self.has_layer else None

    def grad_kernels(self, grad: Tensor, maps: Tensor) -> Tensor:
        """Gradient of the kernels that read f, (D * outs, inputs, k, k)."""
        fours, wide = ceil_div(self.outs, FOUR), self.window[0] or 1
        cut = cut_sums(
            self.out_size,
            self.batch,
            self.depth,
            self.dtype,
            step=self.step,
            kernel_size=self.side,
            items=fours * self.side**2 // wide,
            wide=wide,
            fours=fours,
            inputs=self.inputs,
            unit=self.unit,
        )
        shape = (cut.parts, self.depth * self.outs, self.inputs, self.side, self.side)
        summands = maps.new_empty(shape, dtype=self.real)
        tensors = (grad, maps, self._product_weights(), summands)
        cuts = (*cut.tile, cut.tiles_y, cut.tiles_x, cut.chunk, cut.parts)
        args = (*tensors, self.batch, *self.sizes, *cuts)
        grid = cut.parts * self.depth
        self._launch("convolution", "grad_kernels", self.window, cut, grid, args)
        return summands.sum(0)

    def _rows(self) -> int:
        return 4 if self.window[0] else 1

    def _product_weights(self) -> Tensor:
        """The layer in blocks of the maps that are made at once, (blocks, columns, fours)."""
        if not self.has_layer:
            return self.layer.contiguous()
        blocks = _padded(self.layer, self.unit, dim=0).unflatten(0, (-1, self.unit))
        return _padded(blocks.transpose(1, 2), FOUR, dim=2).contiguous()

    def _launch(self, stem: str, part: str, window: tuple[int, ...], cut, grid: int, args) -> None:
        template = ", ".join(map(str, window))
        form = str(self.has_layer).lower()
        name = f"convolution_{part}<{TYPES[self.dtype]}, {template}, {form}>"
        launch(stem, name, grid, cut.block, args, cut.shared_bytes)


def _in_fours(weights: Tensor) -> Tensor:
    """(D, outs, inputs, taps) as (D, outs / 4, inputs, taps, 4), zeros where outs end."""
    fours = _padded(weights, FOUR, dim=1).unflatten(1, (-1, FOUR))
    return fours.permute(0, 1, 3, 4, 2).contiguous()


def _padded(x: Tensor, multiple: int, dim: int) -> Tensor:
    """Zeros after the end of an axis, up to a multiple."""
    missing = -x.shape[dim] % multiple
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing)) if missing else x
