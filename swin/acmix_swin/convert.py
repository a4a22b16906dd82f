"""Names of Swin weights: the authors' release, plain Swin of three origins, and our own."""

import re
from collections.abc import Callable, Iterable

from torch import Tensor

from acmix.mm.weights import Conversion

# (pattern, replacement) on whole names; what no pattern matches keeps its name.
_RELEASED = [
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers\.(\d+)\.", r"stages.\1."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
]
_TORCHVISION = [
    (r"^features\.0\.0\.", "patch_embed.projection."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.0\.", ".ffn.layers.0.0."),
    (r"\.mlp\.3\.", ".ffn.layers.1."),
]
_STAGE = re.compile(r"(?:backbone\.)?stages\.(\d+)\.")
# Buffers that follow from the sizes; the model makes its own.
_DERIVED = re.compile(r"\.(attn_mask|relative_position_index)$")


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename Swin weights of any known origin to those of an ``ACmixSwinTransformer`` classifier.

    Known are the authors' release, Microsoft's plain Swin (the same names), torchvision's and
    MMPretrain's plain Swin, and our own, with or without ``backbone.``. Names of no known
    origin pass unchanged, for the caller to report. Plain weights come with alpha = 1 and
    beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names, and the names that stay at their start: norms of the earlier
        stages' maps, which a classifier lacks, and for a plain Swin the convolution path.
    """
    weights = {n: w for n, w in state_dict.items() if not _DERIVED.search(n)}
    if "features.0.0.weight" in weights:
        weights, origin = _rename(weights, _torchvision_name), "torchvision's names"
    elif "patch_embed.proj.weight" in weights:
        weights, origin = _rename(weights, _released_name), "Microsoft's names"
    elif any(name.startswith("stages.") for name in weights):
        return _recognise(_rename(weights, lambda name: name), "own names")
    else:
        return _recognise(weights, "own names")
    return _recognise(_reorder_patch_merging(weights), origin)


def _recognise(weights: dict[str, Tensor], origin: str) -> Conversion:
    conversion = Conversion.recognise(weights, origin, "w_msa")
    kinds = ("weight", "bias")
    norms = [f"backbone.norm{i}.{kind}" for i in range(_last_stage(weights)) for kind in kinds]
    conversion.fresh += [name for name in norms if name not in weights]
    return conversion


def _last_stage(names: Iterable[str]) -> int:
    return max((int(m[1]) for n in names if (m := _STAGE.match(n))), default=0)


def _rename(weights: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Rename, put backbone weights under ``backbone.``, the head and last norm in their place."""
    names = {name: rename(name) for name in weights}
    last = f"norm{_last_stage(names.values())}."
    out = {}
    for name, new in names.items():
        if new.startswith("head."):
            new = re.sub(r"^head\.(fc\.)?", "head.fc.", new)
        else:
            new = "backbone." + re.sub(r"^norm\.", last, new)
        out[new] = weights[name]
    return out


def _released_name(name: str) -> str:
    return _substitute(name, _RELEASED)


def _torchvision_name(name: str) -> str:
    name = _substitute(name, _TORCHVISION)
    match = re.match(r"features\.(\d+)\.(.*)", name)
    if match is None:
        return name
    # Stages and patch mergings take turns: 1, 3, 5, 7 and 2, 4, 6.
    index, rest = int(match[1]), match[2]
    part = "blocks" if index % 2 else "downsample"
    return f"stages.{(index - 1) // 2}.{part}.{rest}"


def _substitute(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _reorder_patch_merging(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """From pixel-major input channels to MMCV's channel-major ones.

    Swin concatenates the pixels (0,0), (1,0), (0,1), (1,1) [row, column]; MMCV unfolds each
    channel row by row.
    """
    pattern = re.compile(r"\.downsample\.(norm\.(weight|bias)|reduction\.weight)$")
    return {n: _channel_major(w) if pattern.search(n) else w for n, w in weights.items()}


def _channel_major(weight: Tensor) -> Tensor:
    pixels = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)
