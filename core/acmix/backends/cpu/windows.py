"""CPU kernels of attention inside the windows of a map."""

from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.backends.cpu.maps import Maps
from acmix.layout import computable, readable, sum_dtype
from acmix.ops.registration import kernel
from acmix.ops.windows import map_window_attention

__all__ = ["map_window_attention"]


@kernel(ops.windows, "CPU")
def _forward(qkv: Tensor, bias: Tensor, mask: Tensor | None, height: int, width: int) -> Tensor:
    maps = readable(_maps(qkv, 3 * bias.shape[0]))
    out = maps.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    settings, tensors = _call(maps, bias, mask, height, width)
    tensors["out"] = _maps(out, bias.shape[0])
    library.load().run("windows", settings, tensors)
    return out.to(qkv.dtype)


@kernel(ops.windows_backward, "CPU")
def _backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, mask: Tensor | None, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of the logits of all windows is that of bias and mask, summed up."""
    heads, pixels = bias.shape[0], height * width
    maps = computable(_maps(qkv, 3 * heads))
    settings, tensors = _call(maps, bias, mask, height, width)
    dqkv = maps.new_empty(qkv.shape)
    dmaps = _maps(dqkv, 3 * heads)
    windows = qkv.shape[1] * qkv.shape[2] // pixels
    dlogits = maps.new_empty((len(qkv), windows, heads, pixels, pixels))
    grads = zip("qkv", Maps.of(dmaps).parts(3), strict=True)
    tensors |= {f"grad_{name}": part for name, part in grads}
    tensors |= dict(grad=computable(_maps(grad, heads)), grad_logits=dlogits)
    library.load().run("windows", {**settings, "backward": True}, tensors)
    dmask = None if mask is None else dlogits.sum((0, 2)).to(mask.dtype)
    return dqkv.to(qkv.dtype), dlogits.sum((0, 1)).to(bias.dtype), dmask


def _maps(x: Tensor, count: int) -> Tensor:
    """(B, H, W, maps * D) as (B, maps, D, H, W)."""
    return x.unflatten(3, (count, -1)).permute(0, 3, 4, 1, 2)


def _call(
    maps: Tensor, bias: Tensor, mask: Tensor | None, height: int, width: int
) -> tuple[dict[str, int], dict[str, Tensor | Maps | None]]:
    """Settings and inputs of both passes, for projections (B, 3N, D, H, W)."""
    batch, count, depth, *size = maps.shape
    settings = dict(batch=batch, heads=count // 3, depth=depth, height=size[0], width=size[1])
    settings |= dict(window_height=height, window_width=width)
    dtype = sum_dtype(maps)
    parts = Maps.of(maps).parts(3)
    tensors: dict[str, Tensor | Maps | None] = dict(zip("qkv", parts, strict=True))
    tensors["bias"] = bias.to(dtype).contiguous()
    tensors["mask"] = None if mask is None else mask.to(dtype).contiguous()
    return settings, tensors
