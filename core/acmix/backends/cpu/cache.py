"""A cached library is loaded only if this user built it and its digest, beside it, is right."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def checked_library(path: Path, build: Callable[[], object]) -> Path:
    """The library in the cache, built anew where there is none or it is not what was built.

    Args:
        path: Where it is; its folder is made, and kept, for this user alone.
        build: Writes it there, whole or not at all.

    Raises:
        OSError: The folder is another user's, or can't be made.
    """
    folder_was_safe = _make_private(path.parent)
    if not (folder_was_safe and _is_ours(path) and _digest_fits(path)):
        build()
        digest = _digest_file(path)
        partial = digest.with_name(f"{digest.name}.{os.getpid()}")
        partial.write_text(_digest(path))
        os.replace(partial, digest)
    return path


def _make_private(folder: Path) -> bool:
    """Make a folder that this user alone can write; whether it was one already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid"):
        return True
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise OSError(
            f"{folder} belongs to another user, so no library of it is loaded; set ACMIX_CACHE_DIR "
            "to a folder of your own, or ACMIX_CPU_LIBRARY to a file that you trust"
        )
    folder.chmod(0o700)
    return not status.st_mode & _OTHERS_WRITE


def _is_ours(path: Path) -> bool:
    """Whether it is a file of this user, no link, that nobody else can write."""
    try:
        status = path.lstat()
    except OSError:
        return False
    own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return own and stat.S_ISREG(status.st_mode) and not status.st_mode & _OTHERS_WRITE


def _digest_fits(path: Path) -> bool:
    digest = _digest_file(path)
    return _is_ours(digest) and digest.read_text().strip() == _digest(path)


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
