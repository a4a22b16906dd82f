"""The unfold algorithm of the authors' code as a backend to compare with: k² copies of a map."""

from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor

from acmix.backends import BACKENDS
from acmix.backends import torch as torch_backend
from acmix.geometry import output_size


def sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor | None,
    *,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> Tensor:
    """Keys, values and positions of every window side by side."""
    batch, heads, depth, height, width = q.shape
    size = output_size((height, width), stride)
    pad = dilation * (kernel_size // 2)

    def windows(x: Tensor) -> Tensor:
        padded = F.pad(x, (pad,) * 4, mode="reflect")
        columns = F.unfold(padded, kernel_size, dilation=dilation, stride=stride)
        return columns.view(-1, depth, kernel_size**2, *size)

    query = q[..., ::stride, ::stride].reshape(-1, depth, 1, *size)
    query = query * depth**-0.5
    keys = windows(k.reshape(-1, depth, height, width))
    if position is not None:
        there = windows(position[None])
        keys = keys + position[None, :, None, ::stride, ::stride] - there
    weights = (query * keys).sum(dim=1, keepdim=True).softmax(dim=2)
    out = (weights * windows(v.reshape(-1, depth, height, width))).sum(dim=2)
    return out.view(batch, heads, depth, *size)


def neighbourhood_aggregation(
    v: Tensor, w: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """Values of every neighbourhood side by side."""
    pad = dilation * (kernel_size // 2)
    padded = F.pad(v, (pad,) * 4, mode="reflect" if reflect else "constant")
    columns = F.unfold(padded, kernel_size, dilation=dilation, stride=stride)
    values = columns.view(len(v), -1, w.shape[1], kernel_size**2, *w.shape[3:])
    return (values * w[:, None]).sum(dim=3).flatten(1, 2)


def register() -> None:
    """Make it known as the backend ``"unfold"``."""
    BACKENDS["unfold"] = SimpleNamespace(
        why_not=torch_backend.why_not,
        sliding_window_attention=sliding_window_attention,
        neighbourhood_aggregation=neighbourhood_aggregation,
        convolution_path=torch_backend.convolution_path,
    )
