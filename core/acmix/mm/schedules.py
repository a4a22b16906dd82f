"""Learning rates that MMEngine's own schedulers can't express."""

import math
from typing import Any

from mmengine.optim import CosineAnnealingLR
from mmengine.registry import PARAM_SCHEDULERS

# MMEngine's end of a scheduler that has none.
_NEVER = int(1e9)


@PARAM_SCHEDULERS.register_module()
class WholeCosineLR(CosineAnnealingLR):
    """A cosine over the whole run, of which a warm-up replaces the first part.

    MMEngine's cosine starts at its ``begin`` with the full rate; this one is, from there on, where
    a cosine from the first step on would be, as timm's scheduler has it:
    eta_min + (lr - eta_min) / 2 * (1 + cos(pi * t / T_max)) at step t of the run.

    Args:
        optimizer: The optimiser or its wrapper.
        *args: Further arguments of ``CosineAnnealingLR``.
        T_max: Steps of half a period, counted from the run's first step; ``end`` if ``None``.
        end: Step at which it stops.
        **kwargs: Further arguments of ``CosineAnnealingLR``: ``begin``, ``eta_min_ratio``, ...
    """

    def __init__(
        self, optimizer: Any, *args: Any, T_max: int | None = None, end: int = _NEVER, **kwargs: Any
    ) -> None:
        super().__init__(optimizer, *args, T_max=T_max or end, end=end, **kwargs)

    def _get_value(self) -> list[float]:
        turn = math.pi * (self.begin + self.last_step) / self.T_max
        lows = (
            base * self.eta_min_ratio if self.eta_min is None else self.eta_min
            for base in self.base_values
        )
        return [
            low + (base - low) / 2 * (1 + math.cos(turn))
            for base, low in zip(self.base_values, lows, strict=True)
        ]
