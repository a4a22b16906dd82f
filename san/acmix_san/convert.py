"""Names of SAN weights: the original's, which our modules keep, with and without ``backbone.``."""

from torch import Tensor

from acmix.mm.weights import Conversion, as_classifier


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename SAN weights to those of an ``ACmixSAN`` classifier.

    Known are the original SAN and our own, with or without ``backbone.``. Original weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain SAN also the names that stay at their start.
    """
    return Conversion.recognise(as_classifier(state_dict, "fc."), "SAN's names", "sam")
