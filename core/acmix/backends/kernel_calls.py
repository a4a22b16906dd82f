"""The operators of the compiled kernels under their public signatures, for cpu and cuda alike."""

from torch import Tensor

from acmix import ops

KERNEL_OPS = ("sliding_window_attention", "neighbourhood_aggregation", "neighbourhood_difference")


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
    """See ``acmix.sliding_window_attention``."""
    if position is not None:
        # The softmax drops q_p . position_p; what is left of the position is a change of the keys.
        k = k - position
    return ops.sliding_window_attention(q, k, v, kernel_size, stride, dilation)[0]


def neighbourhood_aggregation(
    v: Tensor, w: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_aggregation``."""
    return ops.aggregation(v, w, kernel_size, stride, dilation, reflect)


def neighbourhood_difference(
    a: Tensor, b: Tensor, *, kernel_size: int, stride: int, dilation: int, reflect: bool
) -> Tensor:
    """See ``acmix.neighbourhood_difference``."""
    return ops.subtraction(a, b, kernel_size, stride, dilation, reflect)
