"""CPU kernels of sliding window attention."""

from collections.abc import Sequence

from torch import Tensor

from acmix import ops
from acmix.backends.cpu import library
from acmix.backends.cpu.maps import Maps
from acmix.geometry import can_reflect, output_size, usable_window
from acmix.layout import computable, empty_map, readable
from acmix.ops.attention import empty_lse, sliding_window_attention
from acmix.ops.registration import kernel

__all__ = ["attend", "attend_backward", "sliding_window_attention"]


@kernel(ops.attention, "CPU")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    maps = [readable(x) for x in (q, k, v)]
    if len({x.dtype for x in maps}) > 1:
        maps = [computable(x) for x in maps]
    size = output_size(q.shape[3:], stride)
    out, lse = empty_map(q, (*q.shape[:3], *size), maps[0].dtype), empty_lse(q, size)
    library.load().run("attention", *attend(maps, None, (kernel_size, stride, dilation), out, lse))
    return out.to(q.dtype), lse


@kernel(ops.attention_backward, "CPU")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` is not read: the kernel has every P and dP at hand, and sums P * dP itself."""
    maps = [computable(x) for x in (q, k, v)]
    grads = [empty_map(x, x.shape, maps[0].dtype) for x in (q, k, v)]
    window = (kernel_size, stride, dilation)
    attend_backward(computable(grad), maps, None, lse, window, grads)
    dq, dk, dv = (x.to(q.dtype) for x in grads)
    return dq, dk, dv


def attend(
    maps: Sequence[Tensor | Maps],
    position: Maps | None,
    window: tuple[int, int, int],
    out: Tensor | Maps,
    lse: Tensor,
    mix: library.Tensors | None = None,
) -> library.Call:
    """The call that writes the attention of maps, and its log-sum-exp.

    Args:
        maps: Queries, keys and values, each (B, N, D, H, W), in a dtype that the kernels read.
        position: Taken off the keys, in their shape; ``None`` for none.
        window: Kernel size, stride, dilation.
        out: (B, N, D, H', W'), in the dtype of the maps.
        lse: (B, N, H', W').
        mix: ``alpha`` and ``offset`` by name, for an ``out`` that the attention is added to.
    """
    q, k, v = maps
    settings = _settings(q, *usable_window(q.shape[3:], *window))
    tensors = dict(q=q, k=k, v=v, position=position, out=out, lse=Maps.of_sums(lse))
    return {**settings, "add": mix is not None}, {**tensors, **(mix or {})}


def attend_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    position: Maps | None,
    lse: Tensor,
    window: tuple[int, int, int],
    grads: Sequence[Tensor],
    mix: library.Tensors | None = None,
) -> None:
    """Write the gradients of q, k and v into ``grads``, and those that ``mix`` names."""
    q, k, v = maps
    kernel_size, stride, dilation = usable_window(q.shape[3:], *window)
    dq, dk, dv = grads
    if stride > 1:
        # Queries between the strides have no gradient.
        dq.zero_()
    library.load().run(
        "attention",
        _settings(q, kernel_size, stride, dilation, backward=True),
        dict(
            q=q,
            k=k,
            v=v,
            position=position,
            lse=Maps.of_sums(lse),
            grad=grad,
            grad_q=dq[..., ::stride, ::stride],
            grad_k=dk,
            grad_v=dv,
            **(mix or {}),
        ),
    )


def _settings(
    q: Tensor | Maps, kernel_size: int, stride: int, dilation: int, *, backward: bool = False
) -> dict[str, int]:
    reflect = can_reflect(q.shape[3:], dilation * (kernel_size // 2))
    return library.window(
        q.shape, kernel_size, stride, dilation, reflect=reflect, backward=backward
    )
