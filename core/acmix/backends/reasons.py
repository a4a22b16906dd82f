"""Reasons against running a call that more than one backend has."""

from torch import Tensor


def not_floating(x: Tensor) -> list[str]:
    """That the dtype is no floating one, if so."""
    return [] if x.is_floating_point() else [f"dtype {x.dtype} is not floating point"]
