"""Names of ResNet weights: runs of the released code, plain ResNet, and our own."""

import re

from torch import Tensor

from acmix import ACmix2d
from acmix.mm.weights import Conversion, as_classifier

# The 3×3 convolution of a plain bottleneck; ours is a module of that name.
_CONV3X3 = re.compile(r"^(backbone\.layer\d+\.\d+\.conv2\.)weight$")


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename ResNet weights of any known origin to those of an ``ACmixResNet`` classifier.

    Known are runs of the authors' code, torchvision's and MMPretrain's plain ResNet, and our own,
    with or without ``backbone.``. A plain ResNet has no weights for the ACmix layers, so it can
    start a training but is not equivalent.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names, with the names that stay at their start and those left over.
    """
    weights = as_classifier(state_dict, "fc.")
    plain = [name for name in weights if _CONV3X3.match(name)]
    if not plain:
        return Conversion(weights, "ACmix")
    prefixes = [_CONV3X3.match(name)[1] for name in plain]
    return Conversion(
        {name: weight for name, weight in weights.items() if name not in plain},
        "plain ResNet",
        fresh=[prefix + name for prefix in prefixes for name in ACmix2d.parameter_names()],
        dropped=plain,
        equivalent=False,
    )
