"""Loading weights of any origin into a model, with a report and without silent loss."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor, nn

from acmix.errors import CheckpointError
from acmix.modules.base import ACmixBase

# Buffers that a model makes for itself.
_DERIVED = ("relative_position_index", "attn_mask", "num_batches_tracked")

_BACKBONE = "backbone."
_HEAD = "head.fc."


@dataclass
class Conversion:
    """A state dict under the names of our classifiers, and what the renaming knows about it.

    Attributes:
        state_dict: ``backbone.*`` names and those of the heads.
        origin: What the weights were made by, for the report.
        defaults: Values of parameters that follow from the origin, for models that have them.
        fresh: Names of the model that such weights can't fill: they keep their start.
        dropped: Names of the weights that have no place in the model.
        equivalent: Whether the model computes what the weights' own model did before training.
    """

    state_dict: dict[str, Tensor]
    origin: str
    defaults: dict[str, Tensor] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    equivalent: bool = True

    @classmethod
    def recognise(cls, weights: dict[str, Tensor], origin: str, layer: str) -> "Conversion":
        """Tell ACmix weights from those of the model with attention alone.

        The latter mean alpha = 1 and beta = 0 in every layer.

        Args:
            weights: Under our names.
            origin: What the weights were made by.
            layer: Name of the attention layer in every block.
        """
        matches = (re.match(rf"(.*\.{layer}\.)", name) for name in weights)
        layers = list(dict.fromkeys(match[1] for match in matches if match))
        own = (*ACmixBase.RATES, *ACmixBase.CONVOLUTION)
        if not layers or any(prefix + name in weights for prefix in layers for name in own):
            return cls(weights, f"ACmix, {origin}")
        rates = ACmixBase.attention_alone().items()
        defaults = {prefix + name: rate for prefix in layers for name, rate in rates}
        fresh = [prefix + name for prefix in layers for name in ACmixBase.CONVOLUTION]
        return cls(weights, f"plain attention, {origin}", defaults, fresh)


def as_classifier(state_dict: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """Weights of a bare network under a classifier's names; those of a classifier as they are.

    Args:
        state_dict: Weights, name to tensor.
        head: What the names of the network's last layer begin with, such as ``"fc."``.
    """
    if any(name.startswith(_BACKBONE) for name in state_dict):
        return dict(state_dict)
    return {_classifier_name(name, head): weight for name, weight in state_dict.items()}


def _classifier_name(name: str, head: str) -> str:
    if name.startswith(_HEAD):
        return name
    return _HEAD + name.removeprefix(head) if name.startswith(head) else _BACKBONE + name


def load_weights(
    model: nn.Module, state_dict: dict[str, Tensor], source: str, *, complete: bool = False
) -> None:
    """Load weights of ours, of the released code or of a plain baseline, and log what happened.

    Args:
        model: A classifier, detector or segmentor whose ``backbone`` has ``convert_state_dict``,
            or such a backbone.
        state_dict: Weights under the names of their origin.
        source: File name for messages.
        complete: Whether every parameter must come from the file, as testing needs. Otherwise a
            head that is not in the file or has another class count starts anew, with a warning.

    Raises:
        CheckpointError: The weights are of another model, incomplete, or (when ``complete``) of
            another number of classes.
    """
    backbone: Any = getattr(model, "backbone", model)
    conversion = backbone.convert_state_dict(state_dict)
    if backbone is model:
        conversion = _of_backbone(conversion)
    own = model.state_dict()
    defaults = {name: w for name, w in conversion.defaults.items() if name in own}
    weights = conversion.state_dict | defaults
    conversion.fresh = [name for name in conversion.fresh if name in own]
    heads = [] if backbone is model else [n for n in own if not n.startswith(_BACKBONE)]
    _check_fit(type(backbone).__name__, own, heads, weights, conversion, source, complete)
    loaded = {name: w for name, w in weights.items() if _fits(name, w, own)}
    model.load_state_dict(loaded, strict=False)
    _report(heads, loaded, conversion, source)


def _of_backbone(conversion: Conversion) -> Conversion:
    """The backbone's part of a whole model's weights, without the prefix; the rest is dropped."""
    names = (n for n in conversion.fresh if n.startswith(_BACKBONE))
    heads = [n for n in conversion.state_dict if not n.startswith(_BACKBONE)]
    return replace(
        conversion,
        state_dict=_strip(conversion.state_dict),
        defaults=_strip(conversion.defaults),
        fresh=[name.removeprefix(_BACKBONE) for name in names],
        dropped=conversion.dropped + heads,
    )


def _strip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(_BACKBONE): w for n, w in weights.items() if n.startswith(_BACKBONE)}


def _fits(name: str, weight: Tensor, own: dict[str, Tensor]) -> bool:
    # The model itself resizes these on loading.
    resized = re.search(r"(relative_position_bias_table|pos_embed\d)$", name)
    return name in own and (bool(resized) or own[name].shape == weight.shape)


def _check_fit(
    kind: str,
    own: dict[str, Tensor],
    heads: list[str],
    weights: dict[str, Tensor],
    conversion: Conversion,
    source: str,
    complete: bool,
) -> None:
    if not any(_fits(n, w, own) for n, w in weights.items() if n not in heads):
        raise CheckpointError(
            f"{source}: none of its {len(weights)} weights fits {kind} "
            f"(it holds {', '.join(list(weights)[:3])}, ...); give a checkpoint of this model"
        )
    skip = set(conversion.fresh)
    missing = [n for n in own if n not in weights and n not in skip and not n.endswith(_DERIVED)]
    wrong = [n for n in own if n in weights and not _fits(n, weights[n], own)]
    head = [n for n in missing + wrong if n in heads]
    broken = [n for n in missing + wrong if n not in head]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} of {len(own)} weights are missing or of another size ("
            f"{_shapes(broken[0], weights, own)}, ...); give the configured model's checkpoint"
        )
    if head and complete:
        raise CheckpointError(
            f"{source}: its classes or heads don't fit the configured model ("
            f"{_shapes(head[0], weights, own)}); set the head's num_classes with --cfg-options"
        )
    if complete and not conversion.equivalent:
        raise CheckpointError(
            f"{source}: {conversion.origin} can start a training but not be tested as ACmix, "
            f"as it lacks {len(conversion.fresh)} of its weights; train first, with load_from=..."
        )


def _shapes(name: str, weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    theirs = tuple(weights[name].shape) if name in weights else "absent"
    return f"{name}: {theirs} in the file, {tuple(own[name].shape)} in the model"


def _report(
    heads: list[str], loaded: dict[str, Tensor], conversion: Conversion, source: str
) -> None:
    logger = MMLogger.get_current_instance()
    logger.info(f"Loaded {len(loaded)} tensors from {source} ({conversion.origin})")
    if conversion.fresh:
        logger.info(f"Not in the file, kept at their start: {', '.join(conversion.fresh)}")
    unused = [n for n in conversion.state_dict if n not in loaded and not n.endswith(_DERIVED)]
    if unused + conversion.dropped:
        logger.warning(f"In the file, but not used: {', '.join(unused + conversion.dropped)}")
    anew = [n for n in heads if n not in loaded and not n.endswith(_DERIVED)]
    if anew:
        logger.warning(f"Other heads or classes than the file's, starting anew: {', '.join(anew)}")
