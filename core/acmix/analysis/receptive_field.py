"""The effective receptive field: which pixels of the image move one pixel of the last map."""

from typing import Any

import torch
from torch import Tensor, nn

from acmix.analysis.observing import Call, check_images, evaluating, record_calls
from acmix.checks import check_choice, require
from acmix.errors import InputError


def effective_receptive_field(
    model: nn.Module, images: Tensor, module: str | None = None
) -> Tensor:
    """Magnitude of the gradient of a map's centre with respect to the image, averaged.

    The gradient is that of the sum over the map's channels in the middle pixel, or in the middle
    two of an axis of even length; its magnitude is the sum over the image's channels.

    Args:
        model: Takes one tensor; its mode is put back, and gradients of weights are left alone.
        images: (B, C, H, W), as the model takes them.
        module: Name of the module whose output is the map, (B, C, H, W), or an ACmix layer. If
            ``None`` that of the model, the last one of several, where it has maps; otherwise the
            output of the last ACmix layer.

    Returns:
        (H, W) over the images.

    Raises:
        InputError: There is no such module, or its output is no map.
    """
    check_images(model, images)
    with evaluating(model), torch.enable_grad():
        call = None if module is not None else _last_call(model, images[:1])
        name = call.name if call else module or ""
        fields = [_field(model, image, name, call) for image in images.detach().split(1)]
    return torch.stack(fields).mean(dim=0)


def contributing_side(field: Tensor, share: float) -> int:
    """Side in pixels of the smallest square around the middle that has a share of the field.

    Args:
        field: (H, W), as ``effective_receptive_field`` gives it.
        share: From 0 to 1.
    """
    field = field.double()  # so that sums in another order are the same
    wanted, longest = share * (1 - 1e-9) * field.sum(), max(field.shape)
    for reach in range(longest):
        window = tuple(_middle(length, reach) for length in field.shape)
        if field[window].sum() >= wanted:
            return max(part.stop - part.start for part in window)
    return longest


def _middle(length: int, reach: int = 0) -> slice:
    """The middle pixel of an axis, or two if it is even, and ``reach`` pixels on both sides."""
    return slice(max((length - 1) // 2 - reach, 0), min(length // 2 + reach + 1, length))


def _last_call(model: nn.Module, image: Tensor) -> Call | None:
    """The last call of an ACmix layer, if the model's output is no map."""
    with torch.no_grad():
        output = _last(model(image))
    return None if _is_map(output) else list(record_calls(model, image).values())[-1]


def _field(model: nn.Module, image: Tensor, name: str, call: Call | None) -> Tensor:
    image = image.clone().requires_grad_()
    maps = _last(_output_of(model, image, name))
    if call is not None and isinstance(maps, Tensor):
        maps = call.on_image(call.as_maps(maps))
    if not _is_map(maps):
        raise InputError(f"module={name}: its output is no map (B, C, H, W); choose another")
    centre = maps[(0, slice(None), *(_middle(length) for length in maps.shape[2:]))].sum()
    (gradient,) = torch.autograd.grad(centre, image)
    return gradient[0].abs().sum(dim=0)


def _output_of(model: nn.Module, image: Tensor, name: str) -> Any:
    modules = dict(model.named_modules())
    check_choice("module", name, modules)
    outputs: list[Any] = []
    handle = modules[name].register_forward_hook(lambda m, args, output: outputs.append(output))
    try:
        model(image)
    finally:
        handle.remove()
    require(bool(outputs), "module", name, "the model doesn't call it; choose another")
    return outputs[0]


def _last(output: Any) -> Any:
    return output[-1] if isinstance(output, tuple | list) and output else output


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4
