"""Calls of the library by the kinds of their tensors, prepared once.

What a call is of, shapes, strides, settings, takes as long to find as the kernel of a small map
takes.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acmix.backends.cpu import library
from acmix.layout import in_format_of, is_channels_last, new_image

# A network has few kinds; of endless sizes the latest are kept.
_MOST = 256

Given = Sequence[Tensor | None]
Settings = Sequence[int]


@dataclass(frozen=True)
class Plan:
    """A call that is prepared for tensors of the kinds of others.

    Attributes:
        call: Of the tensors that it reads, in order, and then of those that it writes.
        image: Shape and dtype of the first that it writes, channels last.
        others: Those of the others.
    """

    call: library.Prepared
    image: tuple[torch.Size, torch.dtype]
    others: Sequence[tuple[torch.Size, torch.dtype]]

    @classmethod
    def of(cls, calls: library.Calls, given: Given, written: Sequence[Tensor]) -> "Plan":
        """A plan of calls that read and write these tensors; the first written is an image."""
        image, *others = ((x.shape, x.dtype) for x in written)
        call = library.Prepared(library.load(), "paths", calls, [*given, *written])
        return cls(call, image, others)

    def run(self, given: Given) -> list[Tensor]:
        """What the call writes."""
        written = [new_image(*self.image)]
        written += [torch.empty(shape, dtype=dtype) for shape, dtype in self.others]
        self.call.run([*given, *written])
        return written


class Plans:
    """The plans of an operator.

    Args:
        convert: Called with the operator's tensors and settings, gives maps (B, N, D, H, W) in
            whose memory format and dtype the result is, and the tensors as the library takes them.
        make: Called with such tensors and the settings, gives their plan.
    """

    def __init__(
        self,
        convert: Callable[..., tuple[Tensor, Given]],
        make: Callable[..., Plan],
    ) -> None:
        self._convert, self._make = convert, make
        self._plans: dict[tuple, Plan] = {}
        # Those of calls that need no conversion, neither before the library nor after it.
        self._direct: dict[tuple, Plan] = {}

    def run(self, given: Given, settings: Settings) -> list[Tensor]:
        """The operator's results, an image first, and what else the call writes."""
        kind = _kind(given, settings)
        plan = self._direct.get(kind)
        if plan is not None:
            return plan.run(given)
        like, converted = self._convert(*given, *settings)
        plan = self._plan(converted, settings)
        if is_channels_last(like) and all(map(operator.is_, given, converted)):
            _keep(self._direct, kind, plan)
        image, *others = plan.run(converted)
        return [in_format_of(like, image), *others]

    def _plan(self, given: Given, settings: Settings) -> Plan:
        kind = _kind(given, settings)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._make(*_apart(given), *settings)
            _keep(self._plans, kind, plan)
        return plan


def _kind(given: Given, settings: Settings) -> tuple:
    """Whatever a plan depends on."""
    kinds = [None if x is None else (x.shape, x.stride(), x.dtype) for x in given]
    return (*settings, torch.get_num_threads(), library.load(), *kinds)


def _apart(given: Given) -> Given:
    """Tensors of the same kinds, each by itself: a call's are told apart by what they are."""
    apart: list[Tensor | None] = []
    for x in given:
        is_new = x is None or all(x is not other for other in apart)
        apart.append(x if x is None or is_new else x.new_empty_strided(x.shape, x.stride()))
    return apart


def _keep(plans: dict[tuple, Plan], kind: tuple, plan: Plan) -> None:
    if len(plans) >= _MOST:
        plans.clear()
    plans[kind] = plan
