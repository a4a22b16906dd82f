"""Tensors that follow from the size of a map and from small parameters, kept until those change."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acmix.tracing import PLAIN_TENSORS, Size, is_watched

# Positions of an image are small next to its maps; a network sees few sizes, or endless ones.
_MOST = 8


class SizeCache:
    """Keeps what a function makes for maps of one size, dtype and device, of unchanged parameters.

    It is no state: copies and pickles start empty. A program that is being traced or compiled
    takes what is there, as a constant, and stores nothing.
    """

    def __init__(self) -> None:
        # By size, dtype and device, with the values that it was made of.
        self._kept: dict[tuple, tuple[list[tuple], Tensor]] = {}

    def __reduce__(self) -> tuple:
        """Copy and pickle without the contents."""
        return SizeCache, ()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def get(
        self,
        size: Sequence[Size],
        like: Tensor,
        make: Callable[[], Tensor],
        sources: Sequence[Tensor] = (),
    ) -> Tensor:
        """What ``make()`` gives, which may depend on nothing but the other arguments.

        Args:
            size: Of the maps, (H, W).
            like: A tensor of their dtype on their device.
            make: Called once for each kind of maps, and again when a source has changed.
            sources: Small parameters that it is made of. It is not kept where their values can't be
                told, see ``_values``.
        """
        # Symbols and traced sizes stand for other sizes too.
        if (
            torch.compiler.is_dynamo_compiling()
            or not _are_known(*size)
            or type(like) not in PLAIN_TENSORS
        ):
            return make()
        values = _values(sources)
        if values is None:
            return make()
        key = (*size, like.dtype, like.device)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == values:
            return kept[1]
        if torch.compiler.is_compiling():
            return make()
        # Tensors of inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        # Another thread may be here as well, so that the oldest is gone already.
        for oldest in list(self._kept)[: 1 - _MOST]:
            self._kept.pop(oldest, None)
        self._kept[key] = values, made
        return made


def _are_known(height: Size, width: Size) -> bool:
    return type(height) is int and type(width) is int


def _values(sources: Sequence[Tensor]) -> list[tuple] | None:
    """Something that is equal while the values of the sources are, where these can be told.

    That is without gradients, on the CPU, in a call that nobody records or transforms. A version
    would not do: averaged weights are often swapped through ``.data``, which no version counts.
    """
    if not sources:
        return []
    # Modes and transforms, such as fake tensors and vmap, give tensors other values.
    if is_watched():
        return None
    if not all(x.is_cpu and type(x) in PLAIN_TENSORS and x.is_contiguous() for x in sources):
        return None
    return [(x.dtype, ctypes.string_at(x.data_ptr(), x.nbytes)) for x in sources]
