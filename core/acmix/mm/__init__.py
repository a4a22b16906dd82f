"""Training and testing through MMEngine and MMPretrain; no other part of acmix imports them."""

import warnings

# mmcv-lite serves all that MMPretrain's models here need, so its absent ops are no news.
warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
# MMEngine's package look-up; the installed setuptools still has it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from acmix.mm.opencv import require_opencv  # noqa: E402

require_opencv()

from acmix.integrations import mmengine  # noqa: E402
from acmix.mm.conversion import Conversion  # noqa: E402
from acmix.mm.digits import Digits  # noqa: E402
from acmix.mm.image_folder import ImageFolder  # noqa: E402
from acmix.mm.loops import ResumableEpochLoop, ResumableIterLoop  # noqa: E402, F401
from acmix.mm.open_head import OpenLinearClsHead  # noqa: E402, F401
from acmix.mm.pictures import PicturesHook  # noqa: E402, F401
from acmix.mm.read import make_mmengine_read_safely  # noqa: E402
from acmix.mm.runner import ACmixRunner  # noqa: E402
from acmix.mm.schedules import WholeCosineLR  # noqa: E402, F401
from acmix.mm.weights import load_weights  # noqa: E402

__all__ = ["ACmixRunner", "Conversion", "Digits", "ImageFolder", "load_weights"]

make_mmengine_read_safely()
mmengine.register()
