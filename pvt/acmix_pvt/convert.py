"""Names of PVT weights: PVT v1's own, which our modules keep, with and without ``backbone.``."""

from torch import Tensor

from acmix.mm.weights import Conversion, as_classifier


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename PVT weights to those of an ``ACmixPVT`` classifier.

    Known are the original PVT v1 and our own, with or without ``backbone.``. Plain weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain PVT also the names that stay at their start.
    """
    return Conversion.recognise(as_classifier(state_dict, "head."), "PVT's names", "attn")
