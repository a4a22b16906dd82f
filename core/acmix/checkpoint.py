"""Reading checkpoints of the released code without running anything they contain.

A released checkpoint is a pickle, and a pickle may name any function to call. Files are therefore
only read by ``torch.load(weights_only=True)``. The few foreign classes that the released files
name (yacs configs, MMEngine log buffers, numpy arrays, the arguments of a command, paths) are
stood in for by inert placeholders, so neither of those packages is imported and nothing of theirs
is called. Files of safetensors have no code in them at all.
"""

import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import safe_globals

from acmix.digests import damaged_tensors, named_tensors
from acmix.errors import CheckpointError
from acmix.reading_cost import check_reading_cost
from acmix.safetensors_files import is_safetensors, read_safetensors
from acmix.suggest import did_you_mean

__all__ = ["load_released", "read_checkpoint", "state_dict_of"]


class _Inert:
    """Stands in for a foreign class or function: takes any arguments and state, keeps none."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _InertMapping(_Inert):
    """Stands in for a foreign dict subclass: makes an empty mapping that the file then fills."""

    # torch's unpickler sets items of dict, OrderedDict and Counter but of no subclass, and sets
    # the state of an OrderedDict, as the released configs need; hence no instance of this class.
    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


# Never the real objects: each name is only a key under which torch finds the placeholder.
_FOREIGN: list[Any] = [
    (_InertMapping, "yacs.config.CfgNode"),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    # A buffer pickles its statistics methods as getattr(HistoryBuffer, name).
    (_Inert, "builtins.getattr"),
    (_Inert, "argparse.Namespace"),
    *(
        (_Inert, f"{module}.{kind}Path")
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for kind in ("Posix", "PurePosix", "Windows", "PureWindows")
    ),
    (_Inert, "numpy.ndarray"),
    (_Inert, "numpy.dtype"),
    *(
        (_Inert, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
]

_CONTAINER_KEYS = ("model", "state_dict")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")

_CUT_SHORT = "is damaged, most likely cut short: copy or download it again."
_HEAD_BYTES = 512
# Bytes of all tensors for each byte of the file: tensors may share theirs.
_LARGEST = 4
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive, to be unpacked first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer, to be fetched with 'git lfs pull'"),
)


def load_released(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights of a released checkpoint.

    Reads the released Swin container (key ``"model"``) and ResNet runs of the released code (key
    ``"state_dict"``), as well as MMEngine files, bare state dicts and files of safetensors, without
    executing anything pickled in the file. The tensors are on the CPU.

    Args:
        path: The checkpoint file, in torch's zip or legacy format, or in that of safetensors.

    Returns:
        The weights by name, without the ``"module."`` of a parallel wrapper.

    Raises:
        CheckpointError: The file cannot be read, is refused, or holds no weights.

    Examples:
        >>> torch.save({"state_dict": {"module.fc.weight": torch.zeros(9, 12)}}, "run.pth")
        >>> {name: tuple(weight.shape) for name, weight in load_released("run.pth").items()}
        {'fc.weight': (9, 12)}
    """
    return _weights_in(read_checkpoint(path), str(path))


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device | Callable = "cpu"
) -> dict[Any, Any]:
    """Read a checkpoint file as plain data without executing anything pickled in it.

    Configs of the released files come back as mappings. Entries whose value is an MMEngine log
    buffer, a numpy array or scalar, an ``argparse.Namespace`` or a path are dropped, and so are
    attributes of mappings. A file of safetensors comes back as a dictionary with its tensors under
    ``"state_dict"``.

    Args:
        path: The checkpoint file, in torch's zip or legacy format, or in that of safetensors.
        map_location: Where the tensors are put, as for `torch.load`.

    Returns:
        The dictionary that was saved: tensors, numbers, strings and containers of them.

    Raises:
        CheckpointError: The file is missing, unreadable, damaged, no checkpoint, asks for code
            to be run, or holds something else than a dictionary.
    """
    path = Path(path)
    try:
        _require_file(path)
        with path.open("rb") as file:
            if is_safetensors(file):
                content = read_safetensors(path, map_location)
            else:
                _require_checkpoint(path, file)
                content = _load(path, file, map_location)
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into the memory of this machine.") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds no dictionary but an object of type {type(content).__name__}: "
            "pass a checkpoint that holds a state dict."
        )
    _check_tensors(path, content)
    return content


def state_dict_of(checkpoint: dict[Any, Any], source: str = "checkpoint") -> dict[str, Tensor]:
    """Pick the weights out of a checkpoint that has been read.

    They are taken from the key ``"model"`` (released Swin), else from ``"state_dict"`` (released
    ResNet runs, MMEngine), else the checkpoint is itself the state dict. A leading ``"module."``
    or ``"_orig_mod."`` is stripped where all names have it.

    Args:
        checkpoint: What `read_checkpoint` returned.
        source: Where it is from, for messages.

    Returns:
        The weights by name, sharing memory with those in ``checkpoint``.

    Raises:
        CheckpointError: There are no weights, or something among them is no tensor.
    """
    return _weights_in(checkpoint, source)


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: pass a checkpoint file.")
    if path.exists():
        raise CheckpointError(f"{path} is no regular file: pass a checkpoint file.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} does not exist, nor does its folder: check the path.")
    neighbours = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    remedy = did_you_mean(path.name, neighbours) or ": check the path."
    raise CheckpointError(f"{path} does not exist{remedy}")


def _require_checkpoint(path: Path, file: BinaryIO) -> None:
    """Refuse what cannot be a checkpoint, naming what it is instead."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head:
        raise CheckpointError(f"{path} is empty: copy or download it again.")
    if head.startswith(b"PK"):
        found = _other_zip(path, file)
        file.seek(0)
    else:
        # Both torch and pickle start their files with this opcode, and no text does.
        found = None if head.startswith(b"\x80") else _kind_of(head)
        if head[257:262] == b"ustar":  # torch would take it for a file of its first versions
            found = "a tar archive"
    if found:
        raise CheckpointError(f"{path} is no checkpoint but {found}: pass a file of torch.save.")


def _other_zip(path: Path, file: BinaryIO) -> str | None:
    """Name what a zip archive is, or return None for one of torch.save."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception as error:
        # The list of members comes last in the file. zipfile raises much else than BadZipFile.
        raise CheckpointError(f"{path} {_CUT_SHORT}") from error
    if "constants.pkl" in members:
        return "a TorchScript archive"
    return None if "data.pkl" in members else "another kind of zip archive"


def _kind_of(head: bytes) -> str:
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, saved in place of the file behind it"
    is_text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "a text file" if is_text else "a file of another kind"


def _check_tensors(path: Path, content: dict) -> None:
    """Compare the tensors with the size of the file and with their digests, if it has them."""
    size = path.stat().st_size
    if sum(tensor.nbytes for _, tensor in named_tensors(content)) > _LARGEST * size:
        raise CheckpointError(
            f"{path} holds tensors of more than {_LARGEST} times its size: refused. Save them with "
            "torch.save as they are, not expanded."
        )
    if damaged := damaged_tensors(content):
        raise CheckpointError(
            f"{path} is damaged: {len(damaged)} of its tensors are not what was saved, such as "
            f"{damaged[0]!r}. Copy it again, or go back to an earlier one."
        )


def _load(path: Path, file: BinaryIO, map_location: str | torch.device | Callable) -> Any:
    # torch is handed the open file since it picks another reader by the suffix of a path.
    check_reading_cost(path, file)
    file.seek(0)
    try:
        with safe_globals(_FOREIGN):
            content = torch.load(file, map_location, weights_only=True, mmap=False)
        return None if _is_foreign(content) else _plain(content, {})
    except (MemoryError, OSError):
        raise
    except Exception as error:
        # Damaged bytes can fail in any way within the unpickler. Its own refusals are not
        # chained: their message advises to switch the protection off.
        cause = None if isinstance(error, pickle.UnpicklingError) else error
        raise _failure(path, file, error) from cause


def _failure(path: Path, file: BinaryIO, error: Exception) -> CheckpointError:
    # A whole pickle of another program is read to its end as well, and then lacks torch's mark.
    if _is_cut_short(file) and "magic number" not in str(error):
        return CheckpointError(f"{path} {_CUT_SHORT}")
    if isinstance(error, pickle.UnpicklingError):
        return _refusal(path, str(error))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(
        f"{path} could not be read, copy or download it again if it is damaged.\nReason: {reason}"
    )


def _is_cut_short(file: BinaryIO) -> bool:
    """Tell whether reading a file of the legacy format failed at the very end of the file."""
    # There the name of a harmless class may be cut as well, and would look like a forbidden one.
    position, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(0)
    return position == end and file.read(1) == b"\x80"


def _refusal(path: Path, message: str) -> CheckpointError:
    asked = re.search(r"GLOBAL (\S+)", message)
    if asked:
        what = f"asks for {asked[1][:80]!r}, which is no plain data"
    elif re.search(r"Trying to call|Can only|must be imported", message):
        what = "asks to call or fill an object that is no plain data"
    else:
        return CheckpointError(
            f"{path} is damaged or no file of torch.save: copy or download it again."
        )
    return CheckpointError(
        f"{path} {what}: refused, nothing was run.\n"
        "Save the state dict alone with torch.save, where the file comes from, and pass that."
    )


def _is_foreign(value: Any) -> bool:
    return isinstance(value, _Inert) or (isinstance(value, type) and issubclass(value, _Inert))


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Copy the containers in ``value``, leaving out the entries that are placeholders."""
    # `done` maps the id of a container to its copy: a file may share containers or nest them in
    # a circle, and without it a small file could unfold without end.
    if id(value) in done:
        return done[id(value)]
    kind = type(value)
    copy: Any
    if kind in (dict, OrderedDict, Counter):
        copy = done[id(value)] = kind()
        for key, entry in value.items():
            if not (_is_foreign(key) or _is_foreign(entry)):
                copy[_plain(key, done)] = _plain(entry, done)
    elif kind is list:
        copy = done[id(value)] = []
        copy.extend(_plain(entry, done) for entry in value if not _is_foreign(entry))
    elif kind in (tuple, set):
        copy = kind(_plain(entry, done) for entry in value if not _is_foreign(entry))
        done[id(value)] = copy
    else:
        return value
    return copy


def _weights_in(checkpoint: dict[Any, Any], source: str) -> dict[str, Tensor]:
    weights = checkpoint
    if isinstance(checkpoint, dict):
        named = [checkpoint.get(key) for key in _CONTAINER_KEYS]
        weights = next((entry for entry in named if isinstance(entry, dict)), checkpoint)
    if not isinstance(weights, dict) or not any(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(
            f"{source} holds no weights{_contents(checkpoint)}: pass a state dict, or a dictionary "
            "with one under 'model' or 'state_dict'."
        )
    for name, weight in weights.items():
        if not (isinstance(name, str) and isinstance(weight, Tensor)):
            raise CheckpointError(
                f"{source} has {name!r} of type {type(weight).__name__} among its weights: "
                "pass a state dict of tensors only."
            )
    # Detached, a tensor is rid of the hooks and attributes that a file can give it.
    return {name: weight.detach() for name, weight in _unwrapped(weights).items()}


def _contents(checkpoint: Any) -> str:
    if not isinstance(checkpoint, dict):
        return f" but is of type {type(checkpoint).__name__}"
    shown = [repr(key)[:40] for key in checkpoint][:5]
    return f" but {', '.join(shown)}" if shown else ""


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # Repeated, since compiled and parallel wrappers nest in either order.
    while prefix := next((p for p in _WRAPPER_PREFIXES if _all_start(weights, p)), None):
        weights = {name[len(prefix) :]: weight for name, weight in weights.items()}
    return weights


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)
