"""Calls of the ACmix layers of a model, seen through hooks that are gone afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acmix.checks import has_shape, require
from acmix.errors import InputError
from acmix.modules import ACmixBase
from acmix.suggest import did_you_mean


class Frame(NamedTuple):
    """What of a layer's map is the image.

    Attributes:
        height: Rows of the map, without padding behind them.
        width: Columns.
        shift: The layer's pixel i is pixel i + shift of the image, around the border.
    """

    height: int
    width: int
    shift: int = 0


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        name: Name of the layer in the model.
        layer: The layer.
        args: Its arguments, copied.
        kwargs: The same.
        frame: Which part of its map is the image.
    """

    name: str
    layer: ACmixBase
    args: tuple
    kwargs: dict[str, Any]
    frame: Frame

    @property
    def size(self) -> tuple[int, ...]:
        """What ``call_size`` of the layer says."""
        return tuple(map(int, self.layer.call_size(*self.args, **self.kwargs)))

    def repeat(self) -> Any:
        """Call the layer with these arguments once more."""
        return self.layer(*self.args, **self.kwargs)

    def as_maps(self, x: Tensor) -> Tensor:
        """What is laid out as the layer's output, as (B, C, H, W)."""
        return self.layer.as_maps(x, *self.size)

    def on_image(self, maps: Tensor) -> Tensor:
        """Maps of the layer, (..., H, W), moved and cut to the image's frame."""
        shift = self.frame.shift
        if shift:
            maps = torch.roll(maps, (shift, shift), (-2, -1))
        return maps[..., : self.frame.height, : self.frame.width]


def layers_of(model: nn.Module) -> dict[str, ACmixBase]:
    """The ACmix layers of a model by name, in their order there.

    Raises:
        InputError: It has none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ACmixBase)}
    remedy = "it has no ACmix layer; put some in with acmix.replace_convolutions(model)"
    require(bool(layers), "model", type(model).__name__, remedy)
    return layers


def stage_of(name: str) -> str:
    """The part of a module's name up to the first number: ``layer1`` of ``layer1.0.conv2``."""
    parts = name.split(".")
    numbered = (i for i, part in enumerate(parts, 1) if any(map(str.isdigit, part)))
    return ".".join(parts[: next(numbered, len(parts))])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation and without autocast; every module's mode is put back."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device.type
    try:
        with torch.autocast(device, enabled=False):
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def record_calls(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """The first call of every ACmix layer in a forward pass, in the order of the calls.

    A module around a layer that pads or shifts the map has a method ``frame_of_call``, which takes
    the arguments of its ``forward`` and gives what a ``Frame`` has.

    Args:
        model: Takes one tensor.
        images: (B, C, H, W), as the model takes them.

    Raises:
        InputError: The model has no ACmix layer, or computes in half precision.
    """
    layers = layers_of(model)
    check_images(model, images)
    calls: dict[str, Call] = {}
    frames: dict[str, Frame] = {}
    handles = []
    for name, layer in layers.items():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else model
        if hasattr(parent, "frame_of_call"):
            hook = _frame_hook(frames, name)
            handles.append(parent.register_forward_pre_hook(hook, with_kwargs=True))
        hook = _call_hook(calls, frames, name)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raise ``InputError`` unless these are images and the model computes in full precision."""
    fits = has_shape(images, None, None, None, None)
    require(fits, "images", tuple(images.shape), "give (B, C, H, W)")
    dtype = next(model.parameters()).dtype
    wide = dtype in (torch.float32, torch.float64)
    require(wide, "model", dtype, "gradients need full precision; give model.float()")


def chosen_calls(model: nn.Module, images: Tensor, names: Sequence[str] | None) -> list[Call]:
    """Calls of the layers of these names, or of the last layer of every stage, in their order.

    Raises:
        InputError: There is no layer of one of the names, or the model doesn't call it.
    """
    layers = layers_of(model)
    for name in names or ():
        if name not in layers:
            hint = did_you_mean(name, layers) or f"; there are {', '.join(layers)}"
            raise InputError(f"layers={name}: the model has no such ACmix layer{hint}")
    calls = record_calls(model, images)
    if names is None:
        names = list({stage_of(name): name for name in calls}.values())
    for name in names:
        require(name in calls, "layers", name, "the model doesn't call this layer; choose others")
    return [call for name, call in calls.items() if name in names]


def _frame_hook(frames: dict[str, Frame], name: str) -> Any:
    def keep(parent: Any, args: tuple, kwargs: dict) -> None:
        frames.setdefault(name, Frame(*parent.frame_of_call(*args, **kwargs)))

    return keep


def _call_hook(calls: dict[str, Call], frames: dict[str, Frame], name: str) -> Any:
    def keep(layer: ACmixBase, args: tuple, kwargs: dict) -> None:
        if name not in calls:
            # What comes after the layer may write over its input.
            copies = tuple(map(_copied, args)), {key: _copied(v) for key, v in kwargs.items()}
            size = layer.call_size(*args, **kwargs)
            calls[name] = Call(name, layer, *copies, frames.get(name, Frame(*size[:2])))

    return keep


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def added_paths(layer: ACmixBase) -> Iterator[dict[str, Tensor | None]]:
    """What the layer adds in its next call: ``attention``, and ``convolution`` times beta."""
    seen: dict[str, Tensor | None] = {}

    def add_paths(att: Tensor | None, conv: Tensor | None) -> Tensor:
        seen.update(attention=att, convolution=conv)
        return type(layer).add_paths(layer, att, conv)

    # An attribute of the object is found before the method of its class.
    object.__setattr__(layer, "add_paths", add_paths)
    try:
        yield seen
    finally:
        del layer.__dict__["add_paths"]
