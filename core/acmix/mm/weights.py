"""Loading weights of any origin into a model, with a report and without silent loss."""

import re
from dataclasses import dataclass
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor, nn

from acmix.errors import CheckpointError, InputError
from acmix.mm.conversion import BACKBONE, Conversion, of_backbone
from acmix.mm.open_head import open_heads

# Buffers that a model makes for itself.
DERIVED = ("relative_position_index", "attn_mask", "num_batches_tracked")
# Both give one value a class, and none of the thousand of ImageNet-1k.
_IMAGENET_22K = (21841, 21842)


@dataclass
class Fitted:
    """Weights that a model takes as they are, and what is to be said about them.

    Attributes:
        weights: Under the model's names; what is not among them keeps its value.
        conversion: Where they are from.
        own: The state dict of the model.
        heads: Names of the model outside of its backbone.
    """

    weights: dict[str, Tensor]
    conversion: Conversion
    own: dict[str, Tensor]
    heads: list[str]

    def report(self, source: str) -> None:
        """Log what was taken, what is missing and what is left over."""
        logger = MMLogger.get_current_instance()
        conversion, loaded = self.conversion, self.weights
        logger.info(f"Loaded {len(loaded)} tensors from {source} ({conversion.origin})")
        if conversion.fresh:
            logger.info(f"Not in the file, kept at their start: {', '.join(conversion.fresh)}")
        unused = [n for n in conversion.state_dict if n not in loaded and not n.endswith(DERIVED)]
        if unused or conversion.dropped:
            names = ", ".join([*unused, *conversion.dropped])
            logger.warning(f"In the file, but not used: {names}")
        anew = [n for n in self.heads if n not in loaded and not n.endswith(DERIVED)]
        if anew:
            sizes = {len(conversion.state_dict[n]) for n in anew if n in conversion.state_dict}
            note = " (the file's is of ImageNet-22k)" if sizes & set(_IMAGENET_22K) else ""
            logger.warning(
                f"Other heads or classes than the file's, starting anew{note}: {', '.join(anew)}"
            )


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
    fitted = fit(model, state_dict, source, complete=complete)
    model.load_state_dict(fitted.weights, strict=False)
    fitted.report(source)


def fit(model: nn.Module, state_dict: dict[str, Tensor], source: str, *, complete: bool) -> Fitted:
    """What of the weights a model takes; arguments and errors as of ``load_weights``."""
    conversion, own, heads = converted(model, state_dict)
    weights = conversion.state_dict | conversion.defaults
    check_any_fits(model, own, heads, weights, source)
    _check_fit(own, heads, weights, conversion, source, complete)
    loaded = {name: w for name, w in weights.items() if _fits(name, w, own)}
    return Fitted(loaded, conversion, own, heads)


def converted(
    model: nn.Module, state_dict: dict[str, Tensor]
) -> tuple[Conversion, dict[str, Tensor], list[str]]:
    """Weights under the model's names, the model's own, and names of those outside its backbone.

    Of what the conversion knows, only names of the model are left.
    """
    backbone: Any = getattr(model, "backbone", model)
    heads = [] if backbone is model else [n for n in model.state_dict() if not _is_body(n)]
    if not hasattr(backbone, "convert_state_dict"):
        raise InputError(
            f"model.backbone.type={type(backbone).__name__}: it has no ACmix layer and its weights "
            "can't be loaded here; take one of acmix's backbones, or a subclass of ACmixBackbone"
        )
    placed = {name: state_dict[name] for name in heads if name in state_dict}
    conversion = backbone.convert_state_dict(
        {name: weight for name, weight in state_dict.items() if name not in placed}
    )
    if backbone is model:
        conversion = of_backbone(conversion)
    conversion.state_dict = conversion.state_dict | placed
    open_heads(model, conversion.state_dict)
    own = model.state_dict()
    conversion.defaults = {name: w for name, w in conversion.defaults.items() if name in own}
    conversion.fresh = [name for name in conversion.fresh if name in own]
    conversion.lacking = [name for name in conversion.lacking if name in own]
    return conversion, own, heads


def _is_body(name: str) -> bool:
    return name.startswith(BACKBONE)


def check_any_fits(
    model: nn.Module,
    own: dict[str, Tensor],
    heads: list[str],
    weights: dict[str, Tensor],
    source: str,
) -> None:
    """Refuse weights none of which has a place in the backbone.

    Args:
        model: What they are for.
        own: State dict of the model.
        heads: Names in it outside of the backbone.
        weights: Under the model's names, as far as they are known.
        source: File name for messages.

    Raises:
        CheckpointError: None fits.
    """
    if not any(_fits(n, w, own) for n, w in weights.items() if n not in heads):
        kind = type(getattr(model, "backbone", model)).__name__
        raise CheckpointError(
            f"{source}: none of its {len(weights)} weights fits {kind} "
            f"(it holds {', '.join(list(weights)[:3])}, ...); give a checkpoint of this model"
        )


def _fits(name: str, weight: Tensor, own: dict[str, Tensor]) -> bool:
    # The model itself resizes these on loading.
    resized = re.search(r"(relative_position_bias_table|pos_embed\d?)$", name)
    return name in own and (bool(resized) or _shape(own[name]) == _shape(weight))


def _shape(weight: Tensor) -> tuple[int, ...] | None:
    # A module may keep other things than tensors under a name of its own.
    return tuple(weight.shape) if isinstance(weight, Tensor) else None


def _check_fit(
    own: dict[str, Tensor],
    heads: list[str],
    weights: dict[str, Tensor],
    conversion: Conversion,
    source: str,
    complete: bool,
) -> None:
    skip = set(conversion.fresh)
    missing = [n for n in own if n not in weights and n not in skip and not n.endswith(DERIVED)]
    wrong = [n for n in own if n in weights and not _fits(n, weights[n], own)]
    head = [n for n in missing + wrong if n in heads]
    broken = [n for n in missing + wrong if n not in head]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} of {len(own)} weights are missing or of another size ("
            f"{_shapes(broken[0], weights, own)}, ...); give the configured model's checkpoint"
        )
    if complete and conversion.lacking:
        raise CheckpointError(
            f"{source}: {conversion.origin} can start a training but not be tested as ACmix, "
            f"as it lacks {len(conversion.lacking)} of its weights; train first, with "
            "load_from=... or the backbone's init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    if head and complete:
        raise CheckpointError(
            f"{source}: its classes or heads don't fit the configured model ("
            f"{_shapes(head[0], weights, own)}); set the head's num_classes with --cfg-options, or "
            "start a training from it, with load_from=... or the backbone's init_cfg"
        )


def _shapes(name: str, weights: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    theirs = _shape(weights[name]) if name in weights else "absent"
    return f"{name}: {theirs} in the file, {_shape(own[name])} in the model"
