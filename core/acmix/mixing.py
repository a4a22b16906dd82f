"""The sum of the two paths (paper Eq. 10), in plain torch."""

from torch import Tensor

from acmix.tracing import addcmul


def add_paths(
    att: Tensor | None, conv: Tensor | None, alpha: Tensor | None, offset: Tensor | None
) -> Tensor:
    """Alpha * F_att + beta * F_conv + offset.

    Args:
        att: F_att, (B, C, H, W), or ``None`` where there is no attention path.
        conv: beta * F_conv, or ``None`` where there is no convolution path.
        alpha: (1,), or (C, 1, 1), or ``None`` for 1. A path alone has none.
        offset: (C, 1, 1) or ``None``.
    """
    path = att if conv is None else conv
    assert path is not None  # A mix has at least one path.
    if offset is not None:
        offset = offset.to(path.dtype)
        conv = offset if conv is None else conv + offset
    if att is None or conv is None:
        return path if conv is None else conv
    return att + conv if alpha is None else addcmul(conv, att, alpha.to(att.dtype))
