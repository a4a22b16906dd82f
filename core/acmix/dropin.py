"""ACmix2d in place of the convolutions of an existing network, and a report of what was done."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from acmix.checks import check_odd, check_positive, require
from acmix.modules import ACmix2d, ACmixBase
from acmix.warm_start import can_copy, copy_convolution


@dataclass(frozen=True)
class Replacement:
    """What became of one convolution.

    Attributes:
        names: Its names in the model; several where it is shared.
        sizes: Its sizes in words.
        before: Parameters of the convolution.
        after: Parameters of what stands there now.
        kept: Why it was kept; ``None`` where it was replaced.
        error: Relative error of the layer's convolution path against the copied weight, in the
            Frobenius norm; ``None`` where nothing was copied.
    """

    names: tuple[str, ...]
    sizes: str
    before: int
    after: int
    kept: str | None = None
    error: float | None = None

    def __str__(self) -> str:
        """One line: names, sizes, parameters, and what was done."""
        done = f"kept, {self.kept}"
        if self.kept is None:
            start = "fresh" if self.error is None else f"copied, error {self.error:.2f}"
            done = f"{self.before:,} -> {self.after:,}, {start}"
        return f"{', '.join(self.names)} ({self.sizes}): {done}"


class Report(list[Replacement]):
    """A ``Replacement`` for each convolution that was looked at, in the model's order."""

    @property
    def replaced(self) -> list[Replacement]:
        """The convolutions that are ACmix layers now."""
        return [row for row in self if row.kept is None]

    def __str__(self) -> str:
        """A line for each convolution, and the totals."""
        before, after = (sum(getattr(row, side) for row in self) for side in ("before", "after"))
        count = len(self.replaced)
        total = f"{count} replaced, {len(self) - count} kept: {before:,} -> {after:,} parameters"
        return "\n".join([*map(str, self), total])


def replace_convolutions(
    model: nn.Module,
    *,
    num_heads: int = 4,
    kernel_att: int = 7,
    kernel_sizes: Iterable[int] = (3,),
    where: Callable[[str, nn.Conv2d], bool] | None = None,
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
        copy_weights: Whether to start from the weights of the convolutions.
        **options: Further arguments of ``ACmix2d``: ``mix``, ``shift``, ``backend``.

    Returns:
        What was replaced, what was kept and why; ``print`` it.

    Raises:
        InputError: The model is a convolution itself, or an argument is wrong.
    """
    kind = type(model).__name__
    require(not isinstance(model, nn.Conv2d), "model", kind, "give the module that holds it")
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
        before, after, error = _count(conv), _count(conv), None
        if kept is None:
            layer = _like(conv, num_heads=num_heads, kernel_att=kernel_att, **options)
            if copy_weights and can_copy(layer):
                error = copy_convolution(conv, layer)
            layers.update(dict.fromkeys(names, layer))
            after = _count(layer)
        report.append(Replacement(tuple(names), _sizes(conv), before, after, kept, error))
    # Not before all are made: a failure leaves the model as it was.
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return report


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
    conditions = (
        # A parametrized convolution is of a class of its own.
        (type(conv) is nn.Conv2d, f"a {type(conv).__name__}"),
        # Weight and spectral norm of the old kind, pruning.
        (not (conv._forward_pre_hooks or conv._forward_hooks), "has hooks"),
        (height == width and height in kernel_sizes, f"not of {kernel_sizes=}"),
        (conv.groups == 1, f"groups={conv.groups}"),
        (conv.padding in same, f"padding={conv.padding}"),
        (conv.padding_mode == "zeros", f"padding_mode={conv.padding_mode}"),
        (len(set(conv.stride)) == 1, f"stride={conv.stride}"),
        (len(set(conv.dilation)) == 1, f"dilation={conv.dilation}"),
        (channels % num_heads == 0, f"num_heads={num_heads} does not divide {channels}"),
    )
    return next((reason for fits, reason in conditions if not fits), None)


def _like(conv: nn.Conv2d, **options) -> ACmix2d:
    """A fresh layer with the geometry, dtype, device and modes of the convolution."""
    layer = ACmix2d(
        conv.in_channels,
        conv.out_channels,
        kernel_conv=conv.kernel_size[0],
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        **options,
    )
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
