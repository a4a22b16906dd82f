"""Tensors that follow from the size of a map alone, kept for the sizes seen last."""

from collections.abc import Callable

import torch
from torch import Tensor

# Positions of an image are small next to its maps; a network sees few sizes, or endless ones.
_MOST = 8


class SizeCache:
    """Keeps what a function makes for maps of one size, dtype and device.

    It is no state: copies and pickles start empty. A program that is being traced or compiled
    takes what is there, as a constant, and stores nothing.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple, Tensor] = {}

    def __reduce__(self) -> tuple:
        """Copy and pickle without the contents."""
        return SizeCache, ()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def get(self, like: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``make(like)`` gives, which may depend on size, dtype and device of ``like`` only.

        Args:
            like: Maps (..., H, W).
            make: Called once for each kind of maps.
        """
        size = like.shape[-2:]
        # Symbols and traced sizes stand for other sizes too.
        if torch.compiler.is_dynamo_compiling() or not all(type(n) is int for n in size):
            return make(like)
        key = (*size, like.dtype, like.device)
        if key in self._kept:
            return self._kept[key]
        if torch.compiler.is_compiling():
            return make(like)
        # Tensors of inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            made = make(like)
        while len(self._kept) >= _MOST:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = made
        return made
