"""Tensors that follow from the size of a map alone, kept for the sizes seen last."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from acmix.tracing import Size

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

    def get(self, size: Sequence[Size], like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """What ``make()`` gives, which may depend on the size, and dtype and device of ``like``.

        Args:
            size: Of the maps, (H, W).
            like: A tensor of their dtype on their device.
            make: Called once for each kind of maps.
        """
        # Symbols and traced sizes stand for other sizes too, and a subclass of tensors for values
        # that are elsewhere or nowhere.
        known = all(type(length) is int for length in size)
        plain = type(like) is Tensor or type(like) is nn.Parameter
        if torch.compiler.is_dynamo_compiling() or not (known and plain):
            return make()
        key = (*size, like.dtype, like.device)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        if torch.compiler.is_compiling():
            return make()
        # Tensors of inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        # Another thread may be here as well, so that the oldest is gone already.
        for oldest in list(self._kept)[: 1 - _MOST]:
            self._kept.pop(oldest, None)
        self._kept[key] = made
        return made
