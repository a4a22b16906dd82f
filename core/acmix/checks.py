"""Argument checks: each names the argument, the value given and the remedy."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from acmix.errors import InputError
from acmix.suggest import did_you_mean
from acmix.tracing import Size, as_number, is_known

# Signatures of a check that are remembered; images of endless sizes must not fill the memory.
_MOST = 256


def once_a_signature(check: Callable[..., None]) -> Callable[..., None]:
    """Decorator of checks of shapes, dtypes, devices and numbers: what has passed passes again.

    On a small map the checks take as long as the kernel. Calls that are compiled or written down,
    whose sizes may be symbols, are checked every time.
    """
    passed: set[tuple] = set()

    @functools.wraps(check)
    def run(*args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            check(*args)
            return
        signature = tuple([_signature(x) for x in args])
        try:
            has_passed = signature in passed
        except TypeError:  # Symbols and lists have no hash.
            check(*args)
            return
        if not has_passed:
            check(*args)
            if len(passed) >= _MOST:
                passed.clear()
            passed.add(signature)

    return run


def _signature(x: Any) -> tuple:
    """What checks ask of a tensor, or a number with its type: 1, 1.0 and True are equal."""
    return (x.shape, x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)


def require(condition: bool, name: str, value: object, remedy: str, *sizes: Any) -> None:
    """Raise ``InputError("<name>=<value>: <remedy>")`` unless the condition holds.

    ``sizes`` fill the gaps ``{}`` of the remedy, then only: printing a size that an exported
    program or a compiled call leaves open would fix it.
    """
    if not condition:
        if isinstance(value, tuple):
            value = tuple(as_number(size) for size in value)
        if sizes:
            remedy = remedy.format(*map(as_number, sizes))
        raise InputError(f"{name}={value}: {remedy}")


def check_positive(name: str, value: int) -> None:
    """Raise unless ``value`` is an integer of at least 1 that 32 bits hold."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= 1, name, value, "give a positive integer")
    require(value < 2**31, name, value, "give an integer below 2**31")


def check_rank(name: str, tensor: Tensor, *axes: str) -> None:
    """Raise unless ``tensor`` has these axes, named as in ``"B"``, ``"3N * D"``."""
    fits = tensor.dim() == len(axes)
    require(fits, f"{name}.shape", tuple(tensor.shape), f"give it as ({', '.join(axes)})")


def check_odd(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive odd integer."""
    check_positive(name, value)
    require(value % 2 == 1, name, value, "give an odd size, so that a window has a centre")


def check_shape(name: str, tensor: Tensor, shape: Iterable[int]) -> None:
    """Raise unless ``tensor`` has exactly this shape."""
    shape = tuple(shape)
    fits = has_shape(tensor, *shape)
    require(fits, f"{name}.shape", tuple(tensor.shape), "must be {}", shape)


def has_shape(tensor: Tensor, *shape: Size | None) -> bool:
    """Whether ``tensor`` has these sizes; ``None`` is any."""
    # A plain loop: checks are a good part of a call on a small map.
    for size, expected in zip(tensor.shape, shape, strict=False):
        if expected is not None and not agree(size, expected):
            return False
    return tensor.dim() == len(shape)


def agree(size: Size, expected: Size) -> bool:
    """Whether two sizes are the same, or one is left open."""
    size, expected = as_number(size), as_number(expected)
    return not is_known(size, expected) or size == expected


def divides(divisor: Size, size: Size) -> bool:
    """Whether ``divisor`` is positive and divides ``size``, or one is left open."""
    divisor, size = as_number(divisor), as_number(size)
    return not is_known(divisor, size) or (divisor > 0 and size % divisor == 0)


def not_empty(*sizes: Size) -> bool:
    """Whether all sizes that are not left open are positive."""
    numbers = [as_number(size) for size in sizes]
    return all(size > 0 for size in numbers if is_known(size))


def check_same_kind(**tensors: Tensor) -> None:
    """Raise unless all tensors have the dtype and the device of the first."""
    (first, like), *others = tensors.items()
    for name, tensor in others:
        same = tensor.dtype == like.dtype and tensor.device == like.device
        kind = f"{tensor.dtype} on {tensor.device}"
        require(same, name, kind, f"must be {like.dtype} on {like.device}, like {first}")


def check_same_device(**tensors: Tensor) -> None:
    """Raise unless all tensors are on the device of the first: a kernel reads them by address."""
    (first, like), *others = tensors.items()
    for name, tensor in others:
        same = tensor.device == like.device
        require(same, name, f"on {tensor.device}", f"must be on {like.device}, like {first}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the choices, and suggest the nearest."""
    choices = list(choices)
    hint = did_you_mean(str(value), choices)
    require(value in choices, name, repr(value), f"choose from {', '.join(choices)}{hint}")
