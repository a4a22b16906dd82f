"""Names of SAN weights: the original's, which our modules keep, with and without ``backbone.``."""

from torch import Tensor

from acmix.mm.weights import Conversion, rename_weights


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename SAN weights to those of an ``ACmixSAN`` classifier.

    Known are the original SAN and our own, with or without ``backbone.``. Original weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain SAN also the names that stay at their start.
    """
    weights = rename_weights(state_dict, _rename)
    return Conversion.recognise(weights, "SAN's names", "sam")


def _rename(name: str) -> str:
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"
