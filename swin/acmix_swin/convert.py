"""Names of Swin weights: the authors' release, plain Swin of four origins, and our own."""

import re
from collections.abc import Iterable

from torch import Tensor

from acmix.mm.conversion import Conversion, renamed

# (pattern, replacement) on whole names; what no pattern matches keeps its name.
_RELEASED = [
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers[._](\d+)\.", r"stages.\1."),
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
_STAGE = re.compile(r"stages\.(\d+)\.")
_MERGING = re.compile(r"stages\.(\d+)\.downsample\.(norm\.(weight|bias)|reduction\.weight)$")
# Buffers that follow from the sizes; the model makes its own.
_DERIVED = re.compile(r"\.(attn_mask|relative_position_index)$")
OWN_NAME = re.compile(
    r"absolute_pos_embed$|patch_embed\.(projection|norm)\.|norm\d+\.|stages\.\d+\.(blocks|downsample)\."
)


def convert_state_dict(state_dict: dict[str, Tensor]) -> Conversion:
    """Rename Swin weights of any known origin to those of an ``ACmixSwinTransformer`` classifier.

    Known are the authors' release, Microsoft's plain Swin (the same names), timm's, torchvision's
    and MMPretrain's plain Swin of any version, and our own, with or without ``backbone.``. Names
    of no known origin pass unchanged, for the caller to report. Plain weights come with alpha = 1
    and beta = 0.

    Args:
        state_dict: Weights, name to tensor.

    Returns:
        Weights under our names, and the names that stay at their start: norms of the earlier
        stages' maps, which a classifier lacks (and timm's feature extractor that of the last
        map), and for a plain Swin the convolution path.
    """
    weights = {n: w for n, w in state_dict.items() if not _DERIVED.search(n)}
    weights, origin = renamed(weights, _rename, r"head\.(fc\.)?")
    conversion = Conversion.recognise(weights, origin, "w_msa")
    last = _last_stage(name.removeprefix("backbone.") for name in weights)
    norms = [f"backbone.norm{i}.{kind}" for i in range(last + 1) for kind in ("weight", "bias")]
    absent = [name for name in norms if name not in weights]
    conversion.fresh += absent
    conversion.lacking += [name for name in absent if name in norms[-2:]]
    return conversion


def _rename(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    if "features.0.0.weight" in weights:
        origin = "torchvision's names"
        weights = {_torchvision_name(n): w for n, w in weights.items()}
    elif "patch_embed.proj.weight" in weights:
        origin = "Microsoft's names"
        weights = {_substitute(n, _RELEASED): w for n, w in weights.items()}
    else:
        return _name_last_norm(weights), "own names"
    mergings = [match for name in weights if (match := _MERGING.match(name))]
    if mergings and min(int(match[1]) for match in mergings) == 1:
        origin = "timm's names"  # a merging is the beginning of a stage there, not the end
    shift = int(origin == "timm's names")
    weights = {_merging_name(n, shift): _pixel_order(n, w) for n, w in weights.items()}
    return _name_last_norm(weights), origin


def _name_last_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The norm of the last map by its number; others, and the first MMPretrain, have but one."""
    last = f"norm{_last_stage(weights)}."
    return {re.sub(r"^norm\.", last, name): weight for name, weight in weights.items()}


def _last_stage(names: Iterable[str]) -> int:
    return max((int(m[1]) for n in names if (m := _STAGE.match(n))), default=0)


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


def _merging_name(name: str, shift: int) -> str:
    match = _MERGING.match(name)
    return f"stages.{int(match[1]) - shift}.downsample.{match[2]}" if match else name


def _pixel_order(name: str, weight: Tensor) -> Tensor:
    """Of a patch merging, from pixel-major input channels to MMCV's channel-major ones.

    Swin concatenates the pixels (0,0), (1,0), (0,1), (1,1) [row, column]; MMCV unfolds each
    channel row by row.
    """
    if not _MERGING.match(name):
        return weight
    pixels = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)
