"""MMEngine reads all metafiles of a library for every config that inherits from it.

That takes as long as to build a model and to train it on a few small images.
"""

from functools import cache
from importlib.util import find_spec


def read_once() -> None:
    """Let this process read every metafile once, and look once for every library."""
    if find_spec("mmengine") is None:  # As where the CUDA kernels alone are tested.
        return
    from mmengine.config import config, utils

    utils.load = cache(utils.load)
    config.is_installed = cache(config.is_installed)
