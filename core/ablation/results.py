"""The file of the results: a line for every finished run, appended whole."""

import csv
import fcntl
import io
import os
from pathlib import Path
from typing import Self

from grid import KEYS, Run

from acmix.errors import InputError

COLUMNS = (
    *KEYS,
    *("config", "top1", "loss", "alpha", "beta", "seconds"),
    *("device", "versions", "recipe"),
)


class Results:
    """The lines of a CSV file, which no other process writes meanwhile; a context.

    Args:
        path: The file; made if it is not there.
        recipe: What stands for the settings of the runs.

    Raises:
        InputError: The file can't be opened, another process writes it, or it has other columns
            or runs of another recipe.
    """

    def __init__(self, path: Path, recipe: str) -> None:
        self.path, self.recipe = path, recipe

    def __enter__(self) -> Self:
        """Open the file and lock it, and take away what a loss of power left of a line."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path}: {reason}; give another --out") from error
        try:
            self._lock()
            self.done = self._read()
        except BaseException:
            os.close(self.file)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which also unlocks it."""
        os.close(self.file)

    def append(self, run: Run, outcome: dict[str, str]) -> None:
        """Add a line: one write, then flushed to the disk."""
        keys = dict(zip(KEYS, run.key, strict=True))
        self._write({**keys, **outcome, "recipe": self.recipe})
        self.done.add(run.key)

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait until it has ended, or give another --out"
            raise InputError(f"{self.path}: another run writes it; {remedy}") from error

    def _read(self) -> set[tuple[str, ...]]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self.file, whole)
        if not whole:
            self._write(dict(zip(COLUMNS, COLUMNS, strict=True)))
            return set()
        return self._keys(read_rows(self.path))

    def _keys(self, rows: list[dict[str, str]]) -> set[tuple[str, ...]]:
        strange = {row["recipe"] for row in rows} - {self.recipe}
        if strange:
            raise InputError(
                f"{self.path}: has runs of other settings (recipe {', '.join(sorted(strange))}, "
                f"now {self.recipe}); give another --out, or remove the file"
            )
        return {tuple(row[key] for key in KEYS) for row in rows}

    def _write(self, row: dict[str, str]) -> None:
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(row)
        os.write(self.file, line.getvalue().encode())
        os.fsync(self.file)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of the results.

    Raises:
        InputError: There is no such file, or it has other columns.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; 'make ablation' makes it")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() for row in rows):
        raise InputError(f"{path}: is no file of the ablation's results; give another --out")
    return rows
