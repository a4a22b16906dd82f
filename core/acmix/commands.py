"""``python -m acmix_swin COMMAND``, and the same for the other projects; needs no clone."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from acmix import convert as conversion
from acmix import info
from acmix.errors import InputError
from acmix.mm import cli
from acmix.mm.analyze import analyze_model
from acmix.mm.demo import demo
from acmix.mm.explain import input_errors_explained
from acmix.mm.export import export
from acmix.mm.predict import predict
from acmix.mm.projects import config_files, project_folder
from acmix.suggest import did_you_mean


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        takes: Its arguments, for the list of commands.
        does: What it does, for the same.
        run: Called with the project's folder and the arguments.
    """

    takes: str
    does: str
    run: Callable[[Path, Sequence[str]], object]


def _list_configs(project: Path, argv: Sequence[str]) -> None:
    if argv:
        raise InputError(f"configs {' '.join(argv)}: leave the arguments out")
    print("\n".join(str(project / path) for path in config_files(project)))


COMMANDS = {
    "train": Command("CONFIG", "train a model", cli.train),
    "test": Command("CONFIG CHECKPOINT", "test it", cli.test),
    "predict": Command("CONFIG CHECKPOINT IMAGES", "classes, objects or masks of images", predict),
    "analyze": Command(
        "CONFIG CHECKPOINT --out DIR", "what its layers do, as a page", analyze_model
    ),
    "demo": Command("CONFIG CHECKPOINT", "a page that takes images, on this machine", demo),
    "export": Command("CONFIG CHECKPOINT OUT", "as a file that runs without acmix", export),
    "convert": Command(
        "IN OUT", "weights of any origin as a clean file", lambda _, argv: conversion.main(argv)
    ),
    "configs": Command("", "list the configs; CONFIG may be the name of one", _list_configs),
    "info": Command("", "versions and backends", lambda *_: info.main()),
}


@input_errors_explained()
def main(package: str, argv: Sequence[str] | None = None) -> None:
    """Run a command of a project.

    Args:
        package: Name of the project's package.
        argv: The command and its arguments; those of the process if ``None``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = f"python -m {package}"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(program))
        return
    name = arguments.pop(0)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise InputError(f"{program} has no command {name!r}{hint}")
    sys.argv[0] = f"{program} {name}"  # which parsers take for the name of the program
    COMMANDS[name].run(project_folder(package), arguments)


def _usage(program: str) -> str:
    lines = [f"usage: {program} COMMAND ..., with --help behind a command for its flags", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name} {command.takes}".ljust(40) + command.does)
    return "\n".join(lines)
