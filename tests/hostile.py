"""Checkpoints changed in every way that damage and malice know."""

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

CODE = "import pathlib\npathlib.Path('executed').touch()\n"


class Code:
    """Pickles as a call that leaves a trace, for a reader that makes it."""

    def __reduce__(self) -> tuple:
        """The call."""
        return (exec, (CODE,))


def mutations(path: Path, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """So many changed files of a checkpoint, each with the name of the change.

    Args:
        path: A whole checkpoint.
        seed: Of the changes.
        count: How many.
    """
    return islice(_mutations(path, random.Random(seed)), count)


def _mutations(path: Path, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """The pickles that are always the same in both formats, then without end what is drawn."""
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    for name, bomb in BOMBS.items():
        yield f"{name}, zipped", with_pickle(bomb)
        yield f"{name}, legacy", legacy(bomb)
    while True:
        for name, change in _BYTES.items():
            yield name, change(whole, draw)
        for name, change in _CONTENTS.items():
            yield name, saved(change(content, draw), zipped=draw.random() < 0.7)


def saved(content: object, *, zipped: bool = True) -> bytes:
    """A file of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def with_pickle(content: bytes) -> bytes:
    """A file of torch.save with another pickle in it, beside one storage of four floats."""
    source = zipfile.ZipFile(io.BytesIO(saved({"weight": torch.arange(4.0)})))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name in source.namelist():
            out.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return file.getvalue()


def legacy(content: bytes) -> bytes:
    """The same in the format of torch's first versions, without a storage."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = [pickle.dumps(part, 2) for part in parts]
    return b"".join([*head, content, pickle.dumps([], 2)])


# Pieces of pickles


def text(value: bytes) -> bytes:
    """A text."""
    return b"X" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    """A number."""
    return b"J" + struct.pack("<i", value)


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """A call of a function."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def entry(value: bytes, key: bytes = b"a") -> bytes:
    """A whole pickle of a dictionary with one entry."""
    return b"\x80\x02}" + text(key) + value + b"s."


def as_key(value: bytes) -> bytes:
    """A whole pickle of a dictionary with this key."""
    return b"\x80\x02}" + value + b"K\x01s."


def tuple_dag(depth: int) -> bytes:
    """A tuple of two that are the same tuple of two, and so on."""
    return b"K\x01" + b"".join(b"q%cq\xffh%c\x86" % (i, i) for i in range(depth))


def tensor(kind: bytes, count: int) -> bytes:
    """A tensor on the one storage, said to have so many elements."""
    identity = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(b"0") + text(b"cpu")
    storage = identity + number(count) + b"tQ"
    size = b"(" + number(count) + b"t"
    rest = (b"K\x00", size, b"(K\x01t", b"\x89", b"]")
    return call("torch._utils", "_rebuild_tensor_v2", storage, *rest)


_MIB = 1 << 20
_ENCODED = call("_codecs", "encode", b"h\x01", text(b"utf-32"))
# Each asks for much memory or time in few bytes.
BOMBS = {
    "bytearray": entry(call("builtins", "bytearray", number(2**31 - 1))),
    "bytearray of Python 2": entry(call("__builtin__", "bytearray", number(2**31 - 1))),
    "tensor of a size": entry(call("torch", "FloatTensor", number(2**30))),
    "new tensor": entry(b"ctorch\nTensor\n(" + number(2**30) + b"t\x81"),
    "tuple as a key": as_key(tuple_dag(60)),
    "tuples in a set": entry(call("builtins", "set", b"](" + tuple_dag(60) + b"e")),
    "nested tuples": as_key(b"K\x01" + b"\x85" * 10**6),
    "nested lists": entry(b"]" * 10**6 + b"a" * (10**6 - 1)),
    "lists": entry(b"(" + b"]" * 4 * 10**6 + b"l"),
    "texts of texts": entry(text(b"x" * _MIB) + b"q\x01" + 500 * _ENCODED),
    "missing bytes": entry(tensor(b"FloatStorage", 10**9)),
}


def _flip(whole: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _garble(whole: bytes, draw: random.Random) -> bytes:
    start, length = draw.randrange(len(whole)), draw.randrange(1, 2000)
    return whole[:start] + draw.randbytes(length) + whole[start + length :]


def _garble_head(whole: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(1, 64)) + whole[draw.randrange(64) :]


def _set(*keys: str, value: object) -> Callable[[dict, random.Random], dict]:
    def change(content: dict, draw: random.Random) -> dict:
        content = _copy(content)
        inner = content
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        return content

    return change


def _set_anywhere(content: dict, draw: random.Random) -> dict:
    """Something of another type at any place but the weights."""
    content = _copy(content)
    del content["digests"]
    inner, key = content, draw.choice(["meta", "message_hub", "optimizer", "processes"])
    while isinstance(inner[key], (dict, list)) and inner[key] and draw.random() < 0.8:
        inner = inner[key]
        key = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    inner[key] = draw.choice([None, -1, "x", [1], {}, 1e300, torch.ones(2), 2**70, b"x", True])
    return content


def _change_weight(content: dict, draw: random.Random) -> dict:
    content = _copy(content)
    weight = content["state_dict"][draw.choice(list(content["state_dict"]))]
    weight.view(-1)[0] += 1
    return content


def _copy(value: object) -> object:
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copy(entry) for entry in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


_BYTES: dict[str, Callable] = {
    "flipped bit": _flip,
    "flipped bit again": _flip,
    "cut short": lambda whole, draw: whole[: draw.randrange(len(whole))],
    "garbled": _garble,
    "garbled head": _garble_head,
    "doubled": lambda whole, draw: whole + whole[: draw.randrange(len(whole))],
}
_CONTENTS: dict[str, Callable] = {
    "code in a value": _set("meta", "note", value=Code()),
    "code in an optimiser": _set("optimizer", "state", value=Code()),
    "code as a config": _set("meta", "config", value=CODE),
    "another type": _set_anywhere,
    "another type again": _set_anywhere,
    "another weight": _change_weight,
    "expanded": _set("extra", value=torch.zeros(1).expand(10**9)),
}
