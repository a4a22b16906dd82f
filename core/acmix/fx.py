"""How layers and operators look to ``torch.fx``: one call each.

Their checks and the choice of a backend need sizes, which a symbolic trace has not.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.fx import Proxy, Tracer

from acmix.checks import require


def fx_leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a layer's ``forward``: symbolic tracing records one call of the layer.

    Raises:
        InputError: When the layer itself is what is traced.
    """

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for proxy in _proxies(args, kwargs):
            tracer = cast(Tracer, proxy.tracer)
            path, kind = tracer.path_of_module(self), type(self).__name__
            require(path != "", "root", kind, "a leaf; trace a module that holds it")
            return tracer.create_proxy("call_module", path, args, kwargs)
        return forward(self, *args, **kwargs)

    return call


def fx_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a function: symbolic tracing records one call of it."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for proxy in _proxies(args, kwargs):
            return proxy.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call


def _proxies(args: tuple, kwargs: dict[str, Any]) -> list[Proxy]:
    """Arguments that stand for values which a trace has not."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Proxy)]
