"""ACmix2d in place of the convolutions of an existing network, and a report of what was done."""

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from acmix.checks import check_odd, check_positive, require
from acmix.errors import InputError
from acmix.modules import ACmix2d, ACmixBase
from acmix.report import Replacement, Report
from acmix.warm_start import can_copy, copy_convolution

# A convolution of no more input channels sees the image itself: grey, RGB, RGB and depth.
_IMAGE_CHANNELS = 4


def replace_convolutions(
    model: nn.Module,
    *,
    num_heads: int = 4,
    kernel_att: int = 7,
    kernel_sizes: Iterable[int] = (3,),
    where: Callable[[str, nn.Conv2d], bool] | None = None,
    stems: bool = False,
    copy_weights: bool = True,
    **options,
) -> Report:
    """Put an ``ACmix2d`` in place of every k×k convolution that it can stand for.

    The model is changed in place, so make the optimizer afterwards. Replaced is each plain
    ``nn.Conv2d`` with one group, zero padding that keeps the size, the same stride and dilation on
    both axes, and output channels that ``num_heads`` divides. Output size, stride, device, dtype,
    training mode and ``requires_grad`` stay; the dilation spaces the keys of the attention alone.
    1×1 convolutions and those inside ACmix layers are left alone and not reported.

    A copied weight makes the layer start as the nearest convolution it can be, its bias included,
    with alpha = 0 and beta = 1 (``acmix.warm_start``). Layers that can't start so have fresh
    weights: dilated ones, and those without alpha or without learned shifts.

    Args:
        model: A network that holds the convolutions.
        num_heads: N of each layer.
        kernel_att: Side of the attention window in keys, odd.
        kernel_sizes: Sides of the convolutions to replace, odd.
        where: Called with the name and the convolution; one for which it is false is kept.
        stems: Whether to replace those of at most four input channels too. They see the image, the
            largest map of the fewest channels, where attention costs most and saves least.
        copy_weights: Whether to start from the weights of the convolutions.
        **options: Further arguments of ``ACmix2d``: ``mix``, ``shift``, ``backend``.

    Returns:
        What was replaced, what was kept and why; ``print`` it. ``save`` it to make the same network
        again by ``apply_replacements``.

    Raises:
        InputError: The model is a convolution itself, or an argument is wrong.

    Warns:
        UserWarning: Nothing is left to replace.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1))
        >>> print(replace_convolutions(model, copy_weights=False))
        0 (3×3, 8 -> 16): 1,168 -> 1,850, fresh
        1 replaced, 0 kept: 1,168 -> 1,850 parameters
    """
    _check_model(model)
    require(where is None or callable(where), "where", where, "give a function of name and module")
    check_positive("num_heads", num_heads)
    several = isinstance(kernel_sizes, Iterable)
    require(several, "kernel_sizes", kernel_sizes, "give a tuple of odd sizes")
    kernel_sizes = tuple(kernel_sizes)
    for size in kernel_sizes:
        check_odd("kernel_sizes", size)
    report, layers = Report(), dict[str, ACmix2d]()
    for conv, names in _convolutions(model).items():
        kept = _why_not(conv, num_heads, kernel_sizes)
        if kept is None and where is not None and not where(names[0], conv):
            kept = "not chosen"
        if kept is None and conv.in_channels <= _IMAGE_CHANNELS and not stems:
            kept = "a stem (stems=True takes it)"
        before, after, error, arguments = _count(conv), _count(conv), None, None
        if kept is None:
            arguments = dict(_geometry(conv), num_heads=num_heads, kernel_att=kernel_att, **options)
            layer = _like(conv, arguments)
            if copy_weights and can_copy(layer):
                error = copy_convolution(conv, layer)
            layers.update(dict.fromkeys(names, layer))
            after = _count(layer)
        sizes = _sizes(conv)
        report.append(Replacement(tuple(names), sizes, before, after, kept, error, arguments))
    if not layers:
        warnings.warn(
            f"nothing is replaced in {type(model).__name__}; print the report for the reasons",
            stacklevel=2,
        )
    _put(model, layers)
    return report


def apply_replacements(model: nn.Module, report: Report | str | os.PathLike[str]) -> Report:
    """Put the layers of a report into a fresh network, so that a checkpoint with them loads.

    Args:
        model: The network that the report was made from, with its convolutions. It is changed in
            place; the layers have fresh weights.
        report: What ``replace_convolutions`` returned, or the file that its ``save`` wrote.

    Returns:
        The report.

    Raises:
        InputError: A layer of the report is not in the model, or is no convolution of its sizes;
            or the file is no report. The model is as it was.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1))
        >>> fresh = copy.deepcopy(model)
        >>> report = apply_replacements(fresh, replace_convolutions(model))
        >>> fresh.load_state_dict(model.state_dict())
        <All keys matched successfully>
    """
    _check_model(model)
    report = report if isinstance(report, Report) else Report.load(report)
    layers = dict[str, ACmix2d]()
    for row in report.replaced:
        convs = [_find(model, name, row) for name in row.names]
        for name, conv in zip(row.names, convs, strict=True):
            shared = conv is convs[0]
            require(shared, name, "another layer", f"the report has {row.names[0]} there too")
        layers.update(dict.fromkeys(row.names, _like(convs[0], row.layer or {})))
    _put(model, layers)
    return report


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    require(not isinstance(model, nn.Conv2d), "model", kind, "give the module that holds it")


def _put(model: nn.Module, layers: dict[str, ACmix2d]) -> None:
    """Set all layers; not before all are made, so that a failure leaves the model as it was."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _find(model: nn.Module, name: str, row: Replacement) -> nn.Conv2d:
    """The convolution that the report tells of."""
    try:
        found = model.get_submodule(name)
    except AttributeError:
        raise InputError(
            f"{name}: {type(model).__name__} has no such layer; give the network that the report "
            "was made from"
        ) from None
    if isinstance(found, ACmix2d):
        raise InputError(f"{name} is an ACmix2d already: give a network as it was before")
    what = type(found).__name__
    if isinstance(found, nn.Conv2d):
        if _geometry(found).items() <= (row.layer or {}).items():
            return found
        what = _sizes(found)
    raise InputError(f"{name}={what}: the report tells of a {row.sizes}")


def _convolutions(model: nn.Module) -> dict[nn.Conv2d, list[str]]:
    """Every convolution larger than 1×1 outside of ACmix layers, with all its names."""
    modules = list(model.named_modules(remove_duplicate=False))
    inside = tuple(f"{name}." for name, module in modules if isinstance(module, ACmixBase))
    found: dict[nn.Conv2d, list[str]] = {}
    for name, module in modules:
        is_kxk = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
        if is_kxk and not name.startswith(inside):
            found.setdefault(module, []).append(name)
    return found


def _why_not(conv: nn.Conv2d, num_heads: int, kernel_sizes: tuple[int, ...]) -> str | None:
    """Why ``ACmix2d`` can't stand for the convolution, or ``None``."""
    (height, width), channels = conv.kernel_size, conv.out_channels
    same = ("same", tuple(step * (height // 2) for step in conv.dilation))
    # timm's, which pads when it is called; with a stride of one as "same" does.
    pads_itself = type(conv).__name__ == "Conv2dSame"
    conditions = (
        (not pads_itself or set(conv.stride) == {1}, _PADS_BY_SIZE.format(conv.stride[0])),
        (not _is_standardised(conv), f"a {type(conv).__name__}: its weight is made anew each call"),
        # A parametrized convolution is of a class of its own.
        (type(conv) is nn.Conv2d or pads_itself, f"a {type(conv).__name__}"),
        # Weight and spectral norm of the old kind, pruning.
        (not (conv._forward_pre_hooks or conv._forward_hooks), "has hooks"),
        (height == width and height in kernel_sizes, f"not of {kernel_sizes=}"),
        (conv.groups == 1, f"groups={conv.groups}"),
        (conv.padding in same or pads_itself, f"padding={conv.padding}"),
        (conv.padding_mode == "zeros", f"padding_mode={conv.padding_mode}"),
        (len(set(conv.stride)) == 1, f"stride={conv.stride}"),
        (len(set(conv.dilation)) == 1, f"dilation={conv.dilation}"),
        (channels % num_heads == 0, f"num_heads={num_heads} does not divide {channels}"),
    )
    return next((reason for fits, reason in conditions if not fits), None)


_PADS_BY_SIZE = "a Conv2dSame of stride {}: where its windows lie depends on the input's size"


def _is_standardised(conv: nn.Conv2d) -> bool:
    """Whether it is one of timm's weight-standardised convolutions, by name."""
    names = {kind.__name__ for kind in type(conv).__mro__}
    return not names.isdisjoint({"StdConv2d", "StdConv2dSame", "ScaledStdConv2d"})


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """What of a convolution the layer in its place has too."""
    return dict(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_conv=conv.kernel_size[0],
        stride=conv.stride[0],
        dilation=conv.dilation[0],
    )


def _like(conv: nn.Conv2d, arguments: dict[str, Any]) -> ACmix2d:
    """A fresh layer with the dtype, device and modes of the convolution."""
    layer = ACmix2d(**arguments)
    layer.requires_grad_(conv.weight.requires_grad)
    return layer.to(conv.weight).train(conv.training)


def _count(module: nn.Module) -> int:
    """Parameters, trained or not; those of a lazy module don't exist yet."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def _sizes(conv: nn.Conv2d) -> str:
    """Kernel, channels and stride, for the report."""
    kernel = "×".join(map(str, conv.kernel_size))
    stride = "" if set(conv.stride) == {1} else f", stride {conv.stride[0]}"
    return f"{kernel}, {conv.in_channels} -> {conv.out_channels}{stride}"
