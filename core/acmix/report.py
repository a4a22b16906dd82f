"""What became of the convolutions of a network, in words and as a file."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from acmix.checks import require
from acmix.errors import InputError

FORMAT, VERSION = "acmix replacements", 1


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
        layer: Arguments of the ``ACmix2d`` that stands there; ``None`` where it was kept.
    """

    names: tuple[str, ...]
    sizes: str
    before: int
    after: int
    kept: str | None = None
    error: float | None = None
    layer: dict[str, Any] | None = None

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
        if not count:
            total = f"nothing is replaced, {len(self)} kept"
        return "\n".join([*map(str, self), total])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, from which ``acmix.apply_replacements`` makes the same network."""
        content = dict(format=FORMAT, version=VERSION, rows=[asdict(row) for row in self])
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Read what ``save`` wrote.

        Raises:
            InputError: It is no such file, or one of a version that is not known here.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} can't be read as a saved report: {error}") from error
        ours = isinstance(content, dict) and content.get("format") == FORMAT
        require(ours, "path", path, "give a file of report.save")
        version = content.get("version")
        require(version == VERSION, f"{path}: version", version, f"this acmix reads {VERSION}")
        return cls(_row(entry) for entry in content["rows"])


def _row(entry: Mapping[str, Any]) -> Replacement:
    names = {field.name for field in fields(Replacement)}
    require(set(entry) == names, "entries of a row", sorted(entry), f"must be {sorted(names)}")
    return Replacement(**{**entry, "names": tuple(entry["names"])})
