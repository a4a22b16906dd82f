"""Which runs the ablation has: models, modes of the layers, training images, lengths, seeds."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields

from acmix.checks import check_choice
from acmix.errors import InputError
from acmix.modules.base import MIX_MODES
from acmix.modules.shift import SHIFT_MODES

# Both modes are the layers' defaults.
MIX, SHIFT = "alpha_beta", "learnable"
# A mode of Table 6 with the default shift, or one of Table 7 with the default mix.
MODES = (
    *((mix, SHIFT) for mix in MIX_MODES),
    *((MIX, shift) for shift in SHIFT_MODES if shift != SHIFT),
)
ALL = "all"
# Training images of a class.
IMAGES = ("10", "30", "100", ALL)
# Batches of a run.
STEPS = (45, 180)
SEEDS = 5
MODELS = ("resnet", "swin")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        model: One of ``MODELS``.
        mix: Mix mode of every layer.
        shift: Shift mode of every layer.
        images: Training images of a class, a number, or all there are.
        steps: Batches that it is trained on, a multiple of 15.
        seed: Of the images, their order and crops, and the start of the weights.
    """

    model: str
    mix: str
    shift: str
    images: str
    steps: int
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """The attributes as a line of the results has them."""
        return tuple(map(str, astuple(self)))


KEYS = tuple(field.name for field in fields(Run))
_CHOICES = {
    "model": MODELS,
    "mix": MIX_MODES,
    "shift": SHIFT_MODES,
    "images": IMAGES,
    "steps": tuple(map(str, STEPS)),
}


def all_runs(seeds: int, only: Iterable[str] = ()) -> list[Run]:
    """The runs in the order in which they are made: a seed is whole before the next begins.

    Args:
        seeds: How many seeds, from 0 on.
        only: ``name=value`` or ``name=value,value`` of attributes; runs with other values are left
            out.

    Raises:
        InputError: A name or value is unknown, or no run is left.
    """
    wanted = dict(_parse(text) for text in only)
    runs = [
        run
        for run in _every_run(seeds)
        if all(str(getattr(run, name)) in values for name, values in wanted.items())
    ]
    if not runs:
        raise InputError(
            f"--only {' '.join(only)}: no run is left; a mode of shift goes with {MIX}"
        )
    return runs


def _every_run(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for model, images, steps, mode in itertools.product(MODELS, IMAGES, STEPS, MODES):
            yield Run(model, *mode, images, steps, seed)


def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, values = text.partition("=")
    if not equals:
        raise InputError(f"--only {text}: give name=value, such as model=swin or images=10,all")
    check_choice("--only", name, _CHOICES)
    for value in values.split(","):
        check_choice(f"--only {name}", value, _CHOICES[name])
    return name, tuple(values.split(","))
