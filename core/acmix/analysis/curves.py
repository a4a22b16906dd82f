"""Curves of a training, from the log that MMEngine writes as JSON."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acmix.errors import InputError

# Tags of the rates of every layer, as they are logged in training.
ALPHA, BETA = "alpha/", "beta/"
# The second of each pair is what MMEngine writes where it writes no other.
_FILES = tuple(
    f"{folder}{name}"
    for folder in ("*/vis_data/", "vis_data/", "")
    for name in ("scalars.json", "2*_*.json")
)
# Of an entry, beside its values.
_PLACES = ("step", "iter", "epoch")


@dataclass
class Curves:
    """Values of a run by tag, each a list of (step, value) in the order of the steps.

    Attributes:
        train: Losses, learning rates and the like, and ``alpha/`` and ``beta/`` of every layer, by
            iteration.
        val: Scores, by epoch, or by iteration in a run without epochs.
    """

    train: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    val: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def read_curves(path: str | Path) -> Curves:
    """Curves of a run.

    Of a run that was stopped and went on, each part counts up to where the next one began.

    Args:
        path: A file of lines of JSON, such as ``vis_data/scalars.json``, or a work dir, a run's
            folder in it or its ``vis_data``, in which such files are looked for.

    Raises:
        InputError: There is no such file, or a line of it is no entry of a log.
    """
    path = Path(path)
    files = [path] if path.is_file() else log_files(path)
    if not files:
        raise InputError(f"{path}: no vis_data/scalars.json in it; give the work dir of a training")
    curves = Curves()
    for file in files:
        _append(curves, _entries(file))
    return curves


def log_files(folder: str | Path) -> list[Path]:
    """Logs of the runs in a work dir, the oldest first, or of one in its own folder."""
    found = (sorted(Path(folder).glob(pattern)) for pattern in _FILES)
    return next((files for files in found if files), [])


def _entries(file: Path) -> list[dict[str, Any]]:
    entries, lines = [], file.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entry["step"] = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # cut off, as the run was
            raise InputError(f"{file}: line {number} is no entry of a log") from error
        entries.append(entry)
    return entries


def _append(curves: Curves, entries: list[dict[str, Any]]) -> None:
    """Add a run, in the place of what earlier ones have of the same steps and later ones."""
    new = Curves()
    for entry in entries:
        in_training = "iter" in entry or any(tag.startswith((ALPHA, BETA)) for tag in entry)
        of_kind = new.train if in_training else new.val
        for tag, value in entry.items():
            if tag in _PLACES or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                of_kind.setdefault(tag, []).append((entry["step"], float(value)))
    for old, added in ((curves.train, new.train), (curves.val, new.val)):
        first = min((points[0][0] for points in added.values()), default=math.inf)
        for tag in {**old, **added}:
            kept = [point for point in old.get(tag, []) if point[0] < first]
            old[tag] = kept + added.get(tag, [])
