"""Names of ResNet weights: runs of the released code, plain ResNet, and our own."""

import re

from torch import Tensor

from acmix import ACmix2d
from acmix.mm.conversion import Conversion, renamed

# The 3×3 convolution of a plain bottleneck; ours is a module of that name.
_CONV3X3 = re.compile(r"^(backbone\.layer\d+\.\d+\.conv2\.)weight$")
OWN_NAME = re.compile(r"(conv1|bn1|layer\d+\.\d+\.(conv\d|bn\d|downsample))\.")


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename ResNet weights of any known origin to those of an ``ACmixResNet`` classifier.

    Known are runs of the authors' code, torchvision's, timm's and MMPretrain's plain ResNet, and
    our own, with or without ``backbone.``. A plain ResNet has no weights for the ACmix layers, so
    it can start a training and no more.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names, with the names that stay at their start and those left over.
    """
    weights, _ = renamed(state_dict, lambda body: (body, ""), r"fc\.")
    plain = {name: weights.pop(name) for name in list(weights) if _CONV3X3.match(name)}
    if not plain:
        return Conversion(weights, "ACmix")
    prefixes = [_CONV3X3.match(name)[1] for name in plain]
    fresh = [prefix + name for prefix in prefixes for name in ACmix2d.parameter_names()]
    return Conversion(weights, "plain ResNet", fresh=fresh, lacking=fresh, dropped=plain)
