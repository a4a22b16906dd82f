"""Where chosen pixels look: attention weights over the image.

The attention of every layer is linear in its values. A weight is therefore the derivative of a
query's output by a value, of the very operator that the layer calls, reflected borders, masks and
reduced keys included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acmix.analysis.observing import (
    Call,
    added_paths,
    chosen_calls,
    evaluating,
)
from acmix.checks import require
from acmix.modules import GlobalACmix, VectorACmix, WindowACmix


@dataclass
class AttentionMaps:
    """Attention of a layer for chosen queries.

    Attributes:
        layer: Its name in the model.
        queries: Where they are, as (row, column) in shares of the image's height and width: the
            middle of the query's pixel of the map.
        weights: (queries, heads, H, W) over the map of keys, which covers the image. A softmax but
            for SAN's patchwise weights, which have any sign and sum.
        elsewhere: (queries, heads), weight of what is not on the image: extra tokens, padding.
        per_channel: Whether weights differ by channel (SAN): shown is their mean, as one head.
    """

    layer: str
    queries: list[tuple[float, float]]
    weights: Tensor
    elsewhere: Tensor
    per_channel: bool


def attention_maps(
    model: nn.Module,
    image: Tensor,
    queries: Sequence[tuple[float, float]] = ((0.5, 0.5),),
    layers: Sequence[str] | None = None,
) -> list[AttentionMaps]:
    """Attention weights of chosen queries in chosen layers, in the order of the calls.

    Args:
        model: Takes one tensor; its mode is put back.
        image: (1, C, H, W), as the model takes it.
        queries: Positions as (row, column) in shares of height and width, from 0 to 1.
        layers: Names of layers; the last one of every stage if ``None``.

    Returns:
        An entry for each layer that has an attention path.

    Raises:
        InputError: The model has no ACmix layer or none of a name, or a position is outside.
    """
    for query in queries:
        inside = len(query) == 2 and all(0 <= share <= 1 for share in query)
        require(inside, "queries", query, "give (row, column) in shares, from 0 to 1")
    require(image.shape[:1] == (1,), "image", tuple(image.shape), "give one image, (1, C, H, W)")
    calls = chosen_calls(model, image, layers)
    with evaluating(model):
        return [_maps_of(call, queries) for call in calls if call.layer.has_attention]


def _maps_of(call: Call, queries: Sequence[tuple[float, float]]) -> AttentionMaps:
    out, values = _attend(call)
    found, weights, elsewhere = [], [], []
    for query in queries:
        (row, column), middle = _pixel(query, call, out)
        derived = out[0, :, row, column].sum()
        (gradient,) = torch.autograd.grad(derived, values, retain_graph=True)
        on_image, off_image = _by_head(call, gradient)
        found.append(middle)
        weights.append(on_image)
        elsewhere.append(off_image)
    per_channel = isinstance(call.layer, VectorACmix)
    return AttentionMaps(
        call.name, found, torch.stack(weights), torch.stack(elsewhere), per_channel
    )


def _attend(call: Call) -> tuple[Tensor, Tensor]:
    """The attention before its projection, (1, C, H, W), and the values that it was made of."""
    layer = call.layer
    leaves: list[Tensor] = []
    unprojected: list[Tensor] = []
    axis = -1 if isinstance(layer, WindowACmix | GlobalACmix) else 1

    def set_apart(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        rest, values = output.detach().split((output.shape[axis] - layer.dim, layer.dim), axis)
        leaves.append(values.requires_grad_())
        return torch.cat([rest, values], axis)

    # Values are the last channels of what makes them.
    source = next(getattr(layer, name) for name in ("qkv", "kv", "conv3") if hasattr(layer, name))
    handles = [source.register_forward_hook(set_apart)]
    if isinstance(layer, WindowACmix | GlobalACmix):
        keep = layer.proj.register_forward_pre_hook(lambda module, args: unprojected.extend(args))
        handles.append(keep)
    try:
        with torch.enable_grad(), added_paths(layer) as paths:
            call.repeat()
    finally:
        for handle in handles:
            handle.remove()
    out = unprojected[0] if unprojected else paths["attention"]
    assert out is not None
    return call.as_maps(out), leaves[0]


def _pixel(
    query: tuple[float, float], call: Call, out: Tensor
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Row and column of a query on the layer's map, and the middle of that pixel in shares."""
    places, middle = [], []
    for share, length, whole in zip(query, call.frame[:2], out.shape[-2:], strict=True):
        length = min(length, whole)  # a stride leaves fewer queries
        pixel = min(int(share * length), length - 1)
        places.append((pixel - call.frame.shift) % whole)
        middle.append((pixel + 0.5) / length)
    return (places[0], places[1]), (middle[0], middle[1])


def _by_head(call: Call, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Weights on the image, (heads, H, W), and the sum of the others, (heads,)."""
    layer, size = call.layer, call.size
    if isinstance(layer, GlobalACmix):
        extra = size[2]
        maps = layer.as_maps(gradient, *layer.key_size(*size[:2]), extra)[0]
        others = gradient[0, :extra].sum(dim=0)
    else:
        maps = layer.as_maps(gradient, *size)[0]
        others = maps.new_zeros(layer.dim)
    on_image = call.on_image(maps)
    others = others + maps.sum(dim=(1, 2)) - on_image.sum(dim=(1, 2))
    if isinstance(layer, VectorACmix):
        return on_image.mean(dim=0, keepdim=True), others.mean(dim=0, keepdim=True)
    # All channels of a head have its weights.
    return on_image[:: layer.head_dim], others[:: layer.head_dim]
