"""ACmix: self-attention and convolution from one set of projections.

"On the Integration of Self-Attention and Convolution", CVPR 2022, arXiv 2111.14556.
"""

from typing import TYPE_CHECKING

from acmix.checkpoint import load_released
from acmix.deploy import deploy, fuse_norm
from acmix.dropin import apply_replacements, replace_convolutions
from acmix.errors import BackendError, CheckpointError, InputError
from acmix.functional import (
    convolution_path,
    map_window_attention,
    mixed_paths,
    neighbourhood_aggregation,
    neighbourhood_difference,
    sliding_window_attention,
    sliding_window_paths,
    window_attention,
)
from acmix.modules import (
    MIX_MODES,
    SHIFT_MODES,
    ACmix,
    ACmix2d,
    GlobalACmix,
    VectorACmix,
    WindowACmix,
)
from acmix.modules.neighbourhood import renamed
from acmix.report import Replacement

__version__ = "0.2.0"

__all__ = [
    "ACmix",
    "ACmix2d",
    "BackendError",
    "CheckpointError",
    "GlobalACmix",
    "InputError",
    "MIX_MODES",
    "Replacement",
    "SHIFT_MODES",
    "VectorACmix",
    "WindowACmix",
    "apply_replacements",
    "convolution_path",
    "deploy",
    "fuse_norm",
    "load_released",
    "map_window_attention",
    "neighbourhood_aggregation",
    "neighbourhood_difference",
    "replace_convolutions",
    "sliding_window_attention",
    "mixed_paths",
    "sliding_window_paths",
    "window_attention",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> type[VectorACmix]:
        return renamed(name, __name__)
