"""Files that are whole or not there at all, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write under, and move the file to its place when it is on the disk.

    The file is flushed to the disk before it is renamed, and its folder after, so even a loss of
    power leaves the old file or the new one. After an error the old one is untouched.

    Args:
        path: Where the file goes.

    Yields:
        Path of the file to write, in the same folder.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file by a whole new one."""
    with whole_file(path) as partial:
        partial.write_text(text)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
