"""Names of PVT weights: PVT v1's own, which our modules keep, with and without ``backbone.``."""

from torch import Tensor

from acmix.mm.weights import Conversion, rename_weights


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename PVT weights to those of an ``ACmixPVT`` classifier.

    Known are the original PVT v1 and our own, with or without ``backbone.``. Plain weights come
    with alpha = 1 and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names; for a plain PVT also the names that stay at their start.
    """
    weights = rename_weights(state_dict, _rename)
    return Conversion.recognise(weights, "PVT's names", "attn")


def _rename(name: str) -> str:
    if name.startswith("head.") and not name.startswith("head.fc."):
        return name.replace("head.", "head.fc.", 1)
    return name if name.startswith(("backbone.", "head.")) else f"backbone.{name}"
