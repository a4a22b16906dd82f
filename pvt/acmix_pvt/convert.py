"""Names of PVT weights: PVT v1's own, which our modules keep, with and without ``backbone.``."""

import re

from torch import Tensor

from acmix.mm.conversion import Conversion, renamed

OWN_NAME = re.compile(
    r"pos_embed\d+$|cls_token$|norm\.|patch_embed\d+\.(proj|norm)\.|block\d+\.\d+\."
)


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename PVT weights to those of an ``ACmixPVT`` classifier.

    Known are the original PVT v1 and our own, with or without ``backbone.``. Plain weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain PVT also the names that stay at their start.
    """
    weights, origin = renamed(state_dict, lambda body: (body, "PVT's names"), r"head\.")
    return Conversion.recognise(weights, origin, "attn")
