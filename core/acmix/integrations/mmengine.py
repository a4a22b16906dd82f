"""MMEngine's ``get_model_complexity_info`` counts layers of ours by their own count."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from mmengine.analysis import FlopAnalyzer

from acmix.complexity import counted_layers

_KIND = "acmix"


def register() -> None:
    """Teach ``FlopAnalyzer``, which sees the operators of a trace, whole layers.

    A trace has plain torch operators only, whose work is not that of the layer. Calling it again
    changes nothing.
    """
    if not hasattr(FlopAnalyzer._analyze, "__wrapped__"):
        FlopAnalyzer._analyze = _with_layers(FlopAnalyzer._analyze)


def _with_layers(analyze: Callable[[FlopAnalyzer], Any]) -> Callable[[FlopAnalyzer], Any]:
    @functools.wraps(analyze)
    def call(self: FlopAnalyzer) -> Any:
        known = self._stats is not None
        with counted_layers(self._model) as layers:
            stats = analyze(self)
        for name, count in () if known else layers.items():
            _replace(stats, name, count)
        return stats

    return call


def _replace(stats: Any, name: str, count: int) -> None:
    """Put a layer's count in place of those of its operators, for it and all that hold it."""
    counted, unknown = Counter(stats.counts[name]), Counter(stats.unsupported_ops[name])
    parts = name.split(".") if name else []
    for end in range(len(parts) + 1):
        holder = ".".join(parts[:end])
        stats.counts[holder] = stats.counts[holder] - counted + Counter({_KIND: count})
        stats.unsupported_ops[holder] -= unknown
    below = f"{name}." if name else ""
    stats.uncalled_mods = {n for n in stats.uncalled_mods if not n.startswith(below)}
