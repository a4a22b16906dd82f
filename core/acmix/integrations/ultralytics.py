"""ACmix in the models of ultralytics: its yaml files, its trainer, ``fuse`` and export.

``register()`` is all that a program needs. A checkpoint of a model with our layers registers by
itself when it is loaded: the trainer builds its model anew from the yaml, and must find them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from acmix.checks import check_choice, require
from acmix.deploy import fuse_norm
from acmix.dropin import Report
from acmix.dropin import replace_convolutions as _replace
from acmix.errors import InputError
from acmix.modules import ACmix2d, ACmixBase

try:
    import ultralytics
    from ultralytics.engine.model import Model
    from ultralytics.nn import tasks
    from ultralytics.nn.modules import Conv
    from ultralytics.utils import LOGGER
except ImportError as error:
    raise ImportError(
        "acmix.integrations.ultralytics needs ultralytics: pip install 'ultralytics>=8.4,<8.5'"
    ) from error

# Versions that the tests were run with; another one is tried before it is changed.
RUN_WITH = ("8.4.190",)
SCALES = ("n", "s", "m", "l", "x")

_MARK = "registered_with_acmix"

# Names of classes whose channels ultralytics scales and repeats are plain. Two that a file does
# not use stand for ours while it is read.
_SCALED = ("Focus", "SPP", "GhostBottleneck", "DWConvTranspose2d", "ELAN1", "GhostConv")


class ACmixConv(Conv):
    """ultralytics' ``Conv`` with ``ACmix2d`` inside: ACmix, BatchNorm, activation.

    In a yaml file ``[-1, 1, ACmixConv, [512, 3, 2]]`` stands where ``Conv`` stood with the same
    arguments.

    Args:
        c1: Channels of the input; left out in a yaml file.
        c2: Channels of the output, which a yaml file gives at width 1; a multiple of ``heads``
            after scaling, as every multiple of 8 is of 4.
        k: Side of the convolution that the layer stands for, odd.
        s: Stride.
        heads: Attention heads.
        kernel_att: Side of the attention window in keys, odd.
        d: Distance of neighbouring keys, in pixels.
        act: The activation: ultralytics' default if true, none if false, or a module.

    Shape:
        Input (B, c1, H, W); output (B, c2, ceil(H / s), ceil(W / s)).

    Raises:
        InputError: A size is wrong.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        heads: int = 4,
        kernel_att: int = 7,
        d: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__(c1, c2, 1, act=act)
        self.conv = ACmix2d(c1, c2, heads, kernel_att, k, s, d)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; the trainer is about to read the yaml again."""
        register()
        super().__setstate__(state)


OURS: dict[str, type[nn.Module]] = {"ACmixConv": ACmixConv, "ACmix2d": ACmix2d}


class _Replaced(dict):
    """What ``replace_convolutions`` did, kept in the yaml of a model; unpickling it registers."""

    def __reduce__(self) -> tuple:
        return _restore, (dict(self),)


def _restore(record: dict) -> _Replaced:
    register()
    return _Replaced(record)


def model_file(scale: str = "n") -> str:
    """Path for ``YOLO``: YOLO11 with ``ACmixConv`` where maps are halved to strides 16 and 32.

    Args:
        scale: ``"n"``, ``"s"``, ``"m"``, ``"l"`` or ``"x"``, which ultralytics reads off the name.

    Raises:
        InputError: There is no such scale.
    """
    check_choice("scale", scale, SCALES)
    return str(Path(__file__).with_name(f"yolo11{scale}-acmix.yaml"))


def register() -> None:
    """Make our layers known to ultralytics, once a process; any further call does nothing.

    Yaml files may name ``ACmixConv`` and ``ACmix2d``, whose channels are scaled by width as those
    of ``Conv``; what ``replace_convolutions`` did is done again where a model is built from its
    yaml; ``fuse()`` puts our layers into their deploy form. For this ``parse_model``,
    ``BaseModel.fuse`` and ``BaseModel.load`` of ``ultralytics.nn.tasks`` are wrapped.

    Raises:
        InputError: This version of ultralytics reads yaml files in another way.
    """
    if hasattr(tasks, _MARK):
        return
    parse = _wrapped(tasks.parse_model, _parse)
    _try(parse)
    tasks.parse_model = parse
    tasks.BaseModel.fuse = _wrapped(tasks.BaseModel.fuse, _fuse)
    tasks.BaseModel.load = _wrapped(tasks.BaseModel.load, _load)
    setattr(tasks, _MARK, True)


def replace_convolutions(model: Model, **options: Any) -> Report:
    """``acmix.replace_convolutions`` for a model that ultralytics is to train.

    Its trainer builds the network anew from the yaml. What was replaced is kept there, so that it
    is replaced again, and in every checkpoint.

    Args:
        model: A ``YOLO`` of a ``.pt`` or ``.yaml`` file.
        **options: Arguments of ``acmix.replace_convolutions``.

    Returns:
        What was replaced, what was kept and why; names are those in ``model.model``.

    Raises:
        InputError: The model is no ``YOLO``, its convolutions are replaced already, or an argument
            is wrong.
    """
    register()
    kind = type(model).__name__
    trained = isinstance(model, Model) and isinstance(model.model, tasks.BaseModel)
    require(trained, "model", kind, "give the YOLO of a .pt or .yaml file")
    network = model.model
    done = "acmix" not in network.yaml
    require(done, "model", kind, "its convolutions are replaced already; start from a fresh one")
    report = _replace(network.model, **options)
    names = [name for row in report.replaced for name in row.names]
    options.pop("where", None)
    network.yaml["acmix"] = _Replaced(names=names, options=options)
    # Without a checkpoint the trainer would read the file again, and not this model's yaml.
    model.ckpt = model.ckpt or {"model": network}
    return report


def _wrapped(function: Callable, around: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    return call


def _parse(parse: Callable, d: dict, *args: Any, **kwargs: Any) -> tuple[nn.Sequential, list[int]]:
    """``parse_model`` that knows our layers, and replaces what was replaced before."""
    rows = {row[2] for row in d["backbone"] + d["head"]}
    with _known(rows):
        layers, save = parse(d, *args, **kwargs)
    record = d.get("acmix")
    if record:
        names = set(record["names"])
        report = _replace(layers, where=lambda name, _: name in names, **record["options"])
        found = {name for row in report.replaced for name in row.names}
        lost = sorted(names - found)
        require(not lost, "replaced convolutions", lost, "the yaml has no such convolutions")
    return layers, save


@contextmanager
def _known(rows: set[str]) -> Iterator[None]:
    """Our classes under their names, and under names of a kind whose channels are scaled.

    ``parse_model`` looks a row's class up by name, and its channels are scaled if the class is in a
    set that the function makes of classes it knows by name.
    """
    names = vars(tasks)
    spare = [name for name in _SCALED if name in names and name not in rows]
    changed = OURS | dict(zip(spare, OURS.values(), strict=False))
    before = {name: names[name] for name in changed if name in names}
    names.update(changed)
    try:
        yield
    finally:
        for name in changed:
            del names[name]
        names.update(before)


def _try(parse: Callable) -> None:
    """Read a small yaml, and see that channels are scaled and a later row gets them.

    Raises:
        InputError: They are not.
    """
    rows = [[-1, 1, "ACmixConv", [64, 3, 2]], [-1, 1, "ACmix2d", [32, 2, 3]]]
    config = dict(nc=1, depth_multiple=1.0, width_multiple=0.5, backbone=rows, head=[])
    problem: object = None
    try:
        block, layer = parse(config, 3, verbose=False)[0]
        channels = [block.conv.in_channels, block.conv.dim, layer.in_channels, layer.dim]
        problem = None if channels == [3, 32, 32, 16] else f"channels {channels}"
    except Exception as error:
        problem = error
    if problem is not None:
        raise InputError(
            f"ultralytics={ultralytics.__version__}: reads yaml files in another way than "
            f"{', '.join(RUN_WITH)} ({problem}); install one of these"
        )


def _fuse(fuse: Callable, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """``BaseModel.fuse``, our layers first: theirs would read the weight of a convolution."""
    for block in model.modules():
        if isinstance(block, Conv) and isinstance(block.conv, ACmixBase) and hasattr(block, "bn"):
            block.bn.eval()
            fuse_norm(block.conv, block.bn)
            del block.bn
            block.forward = block.forward_fuse
    for layer in model.modules():
        if isinstance(layer, ACmixBase):
            layer.switch_to_deploy()
    return fuse(model, *args, **kwargs)


def _load(load: Callable, model: nn.Module, weights: Any, *args: Any, **kwargs: Any) -> None:
    """``BaseModel.load``, which skips what has no tensor of its name in the model."""
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    layers = {name: m for name, m in source.named_modules() if isinstance(m, ACmixBase)}
    fused = any(layer.deployed for layer in layers.values())
    remedy = "fuse() has folded its layers; load the file again, YOLO('last.pt'), and train that"
    require(not fused, "weights", type(source).__name__, remedy)
    here = dict(model.named_modules())
    lost = [name for name in layers if not isinstance(here.get(name), ACmixBase)]
    if lost:
        LOGGER.warning(
            f"acmix: {len(lost)} ACmix layers are plain again, {', '.join(lost)}: replace "
            "convolutions with acmix.integrations.ultralytics.replace_convolutions"
        )
    load(model, weights, *args, **kwargs)
