"""``python -m acmix.convert IN OUT``: weights of any origin as a clean file under our names.

The file holds the weights, the names of the classes where they are known, and nothing else. torch
alone opens it. Weights of attention alone stay so: the model that they are loaded into has
alpha = 1 and beta = 0.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from acmix.checkpoint import state_dict_of
from acmix.digests import KEY, digests_of
from acmix.errors import CheckpointError, InputError
from acmix.mm.admission import class_names
from acmix.mm.checks import check_folder
from acmix.mm.conversion import BACKBONE, Conversion
from acmix.mm.explain import input_errors_explained
from acmix.mm.files import whole_file
from acmix.mm.read import read_anywhere
from acmix.safetensors_files import write_safetensors

ARCHES = ("resnet", "san", "pvt", "swin")
_ENDINGS = {"pth": (".pth", ".pt"), "safetensors": (".safetensors",)}


def convert(weights: dict[str, Tensor], source: str, arch: str | None = None) -> Conversion:
    """Weights under our names.

    Args:
        weights: Under the names of their origin.
        source: Where they are from, for messages.
        arch: One of ``ARCHES``; found by the names if ``None``.

    Raises:
        CheckpointError: Not all names are of one of our models, or of a known origin of it.
        InputError: The project of the architecture isn't installed.
    """
    closest: list[str] | None = None
    for project in _projects(arch):
        conversion = project.convert_state_dict(weights)
        unknown = _unknown(conversion, project)
        if not unknown:
            return conversion
        if closest is None or len(unknown) < len(closest):
            closest = unknown
    names = [name.removeprefix(BACKBONE) for name in closest or weights]
    raise CheckpointError(
        f"{source}: {len(names)} of its {len(weights)} names are of no known weights of "
        f"{arch or ', '.join(ARCHES)} (such as {', '.join(names[:3])}); give a checkpoint of "
        "such a model"
    )


def write(path: Path, conversion: Conversion, classes: tuple[str, ...] | None, kind: str) -> None:
    """Write a converted file, whole or not at all.

    Args:
        path: Where it goes; what is there is replaced.
        conversion: The weights.
        classes: Names of the classes that they tell apart, if known.
        kind: ``"pth"`` or ``"safetensors"``.
    """
    # With what was left over: a plain ResNet is only known by it.
    weights = conversion.state_dict | conversion.dropped
    with whole_file(path) as partial:
        if kind == "safetensors":
            write_safetensors(partial, weights, classes)
        else:
            # A view would be saved with all that it is a view of.
            weights = {name: weight.clone() for name, weight in weights.items()}
            meta = {} if classes is None else {"dataset_meta": {"classes": list(classes)}}
            content = {"meta": meta, "state_dict": weights}
            torch.save({**content, KEY: digests_of(content)}, partial)


def _projects(arch: str | None) -> list[ModuleType]:
    names = [f"acmix_{name}" for name in ([arch] if arch else ARCHES)]
    there = [name for name in names if importlib.util.find_spec(name)]
    if not there:
        raise InputError(f"{', '.join(names)}: not installed; run 'make install'")
    return [importlib.import_module(f"{name}.convert") for name in there]


def _unknown(conversion: Conversion, project: ModuleType) -> list[str]:
    """Names of the backbone that are none of its model's; all, if there is no backbone."""
    names = [*conversion.state_dict, *conversion.dropped]
    body = [name for name in names if name.startswith(BACKBONE)]
    return [n for n in body or names if not project.OWN_NAME.match(n.removeprefix(BACKBONE))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m acmix.convert", description=__doc__)
    parser.add_argument("input", metavar="IN", help="a checkpoint of any origin, or its address")
    parser.add_argument("output", metavar="OUT", help="the file to write, .pth or .safetensors")
    parser.add_argument("--arch", choices=ARCHES, help="whose weights they are; found if not given")
    parser.add_argument("--format", choices=_ENDINGS, help="format of OUT; by its ending otherwise")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    return parser


def _check_output(path: Path, kind: str | None, force: bool) -> str:
    """The format to write, if that can be done."""
    kinds = [name for name, endings in _ENDINGS.items() if path.suffix in endings]
    if not kinds or (kind is not None and kind not in kinds):
        endings = [e for name, es in _ENDINGS.items() if kind in (None, name) for e in es]
        raise InputError(f"OUT={path}: give a name that ends in {' or '.join(endings)}")
    check_folder("OUT", path)
    if path.exists() and (not force or not path.is_file()):
        raise InputError(f"OUT={path}: is there already; give another name, or --force")
    return kinds[0]


@input_errors_explained()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Arguments; those of the process if ``None``.
    """
    args = _parser().parse_args(argv)
    path = Path(args.output)
    kind = _check_output(path, args.format, args.force)
    content = read_anywhere(args.input)
    conversion = convert(state_dict_of(content, args.input), args.input, args.arch)
    try:
        write(path, conversion, class_names(content), kind)
    except OSError as error:
        raise InputError(f"OUT={path}: can't be written ({error.strerror or error})") from error
    print(f"{path}: {len(conversion.state_dict)} tensors ({conversion.origin})")
    if conversion.lacking:
        print("It can start a training but not be tested: it lacks weights of the ACmix layers.")


if __name__ == "__main__":
    main()
