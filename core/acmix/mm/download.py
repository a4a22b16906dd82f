"""Files behind addresses, kept in torch's cache and taken only whole."""

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from acmix.errors import CheckpointError

# As torch's and MMEngine's model zoos name their files: the first digits of the SHA-256.
_DIGEST = re.compile(r"-([0-9a-f]{8,64})(\.\w+)+$")
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])")
_PIECE, _TIMEOUT = 1 << 20, 60


def download(address: str) -> Path:
    """The file behind an address, in ``torch.hub``'s folder of checkpoints.

    A file whose name ends in ``-<first digits of its SHA-256>`` is compared with it, also when it
    is there already, and shared with torch's own downloads. Names without a digest may be those of
    several files, so such a one is in a folder of its address.

    Args:
        address: An ``http://`` or ``https://`` address.

    Raises:
        CheckpointError: It can't be fetched whole, or is not what its name promises.
    """
    name = urllib.parse.unquote(Path(urllib.parse.urlsplit(address).path).name)
    if not name:
        raise CheckpointError(f"{address} names no file; give the address of a checkpoint")
    folder, digest = Path(torch.hub.get_dir(), "checkpoints"), _digest_of(name)
    if digest is None:
        folder /= hashlib.sha256(address.encode()).hexdigest()[:16]
    path = folder / name
    if path.is_file() and (digest is None or _sha256(path).startswith(digest)):
        return path
    MMLogger.get_current_instance().info(f"Downloading {address} to {path}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(address, path, digest)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise CheckpointError(f"{address} can't be fetched: {reason}; check the address") from error
    return path


def _fetch(address: str, path: Path, digest: str | None) -> None:
    """Write the file beside its place and move it there when it is whole."""
    # A name of its own: several processes may fetch the same file at once.
    handle, partial = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            request = urllib.request.Request(address, headers={"User-Agent": "acmix"})
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                expected = response.headers.get("Content-Length")
                while piece := response.read(_PIECE):
                    file.write(piece)
            if expected is not None and file.tell() != int(expected):
                raise CheckpointError(
                    f"{address}: {file.tell():,} of {int(expected):,} bytes came; try again"
                )
        if digest is not None and not (found := _sha256(Path(partial))).startswith(digest):
            raise CheckpointError(
                f"{address} is not what its name says: its SHA-256 begins with "
                f"{found[: len(digest)]}; try again, or give another address"
            )
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _digest_of(name: str) -> str | None:
    match = _DIGEST.search(name)
    return match[1] if match and not _DATE.fullmatch(match[1]) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
