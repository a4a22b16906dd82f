"""ACmix layers: one base with the convolution path and the mix, one file an attention form."""

from acmix.modules.acmix2d import ACmix2d
from acmix.modules.base import MIX_MODES, ACmixBase
from acmix.modules.neighbourhood import VectorACmix
from acmix.modules.released import ACmix
from acmix.modules.shift import SHIFT_MODES, ShiftKernels
from acmix.modules.spatial_reduction import GlobalACmix
from acmix.modules.window import WindowACmix

__all__ = [
    "ACmix",
    "ACmix2d",
    "ACmixBase",
    "GlobalACmix",
    "MIX_MODES",
    "SHIFT_MODES",
    "ShiftKernels",
    "VectorACmix",
    "WindowACmix",
]
