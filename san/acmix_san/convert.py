"""Names of SAN weights: the original's, which our modules keep, with and without ``backbone.``."""

import re

from torch import Tensor

from acmix.mm.conversion import Conversion, renamed

OWN_NAME = re.compile(r"(conv_in|bn_in|conv\d|bn\d|layer\d+\.\d+\.(bn1|sam|bn2|conv))\.")


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename SAN weights to those of an ``ACmixSAN`` classifier.

    Known are the original SAN and our own, with or without ``backbone.``. Original weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain SAN also the names that stay at their start.
    """
    weights, origin = renamed(state_dict, lambda body: (body, "SAN's names"), r"fc\.")
    return Conversion.recognise(weights, origin, "sam")
