"""What reading a checkpoint would cost, found before anything in it is built.

A few bytes of a pickle can ask for gigabytes, or for work without end. Here its instructions are
gone through without being carried out, and the file is refused where they would cost more than
a file of its size can need.
"""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from acmix.errors import CheckpointError

# Bytes that objects may take for each byte of the file, and besides: a released file has many
# small ones.
_BYTES_PER_BYTE, _BYTES_BESIDES = 2, 1 << 25
# Nested tuples are hashed by recursion in C.
_DEEPEST = 100
_OBJECT = 64

# torch lets these be called, and they take memory of a size that the file names.
_COSTLY = re.compile(
    r"(builtins|__builtin__)\.bytearray|torch(\.\w+)*\.\w*Tensor"
    r"|torch\._utils\._rebuild_(?!tensor(_v2|_v3)?$|parameter(_with_state)?$)\w+"
    r"|torch\._tensor\._rebuild_from_type_v2"
)
_DTYPES = torch.storage._storage_type_to_dtype_map()


class _Item(NamedTuple):
    """What is known of an object on the stack of the unpickler."""

    weight: int = 8  # bytes, with all that a tuple refers to counted each time
    depth: int = 0  # of tuples within tuples
    value: Any = None  # a number, a text, a name of a global, the items of a tuple


_OTHER = _Item()


def check_reading_cost(path: Path, file: BinaryIO) -> None:
    """Refuse a file whose reading would cost far more than its size.

    Args:
        path: For messages.
        file: The file, open for reading at its start.

    Raises:
        CheckpointError: The file is refused, or a part of it is damaged.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(2) == b"PK":
        file.seek(0)
        _check_archive(path, file, size)
    else:
        file.seek(0)
        scan = _Scan(path, size)
        # Three of torch's own, the content, and the keys of the storages, which follow.
        for _ in range(5):
            if not scan.run(file):
                break
        scan.check_storages(None)


def _check_archive(path: Path, file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
        if not stored or sum(member.file_size for member in members) > size:
            raise CheckpointError(
                f"{path} unfolds to more than its {size:,} bytes, which no file of torch.save "
                "does: refused. Save it again with torch.save."
            )
        if (damaged := _damaged_part(archive, members)) is not None:
            raise CheckpointError(
                f"{path} is damaged: the checksum of its part {damaged!r} is wrong. Copy or "
                "download it again."
            )
        scan = _Scan(path, size)
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                with archive.open(member) as stream:
                    scan.run(stream)
        scan.check_storages({m.filename.partition("/data/")[2]: m.file_size for m in members})


def _damaged_part(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> str | None:
    """The first part that is not what its checksum says, or has the name of another."""
    names = set()
    for member in members:
        try:
            with archive.open(member) as stream:
                while stream.read(1 << 20):
                    pass
        except Exception:  # damaged bytes can fail in any way
            return member.filename
        if member.filename in names:
            return member.filename
        names.add(member.filename)
    return None


class _Scan:
    """Goes through the instructions of pickles and adds up what they would take."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.left = _BYTES_PER_BYTE * size + _BYTES_BESIDES
        self.storages: dict[Any, int] = {}

    def run(self, stream: Any) -> bool:
        """Go through one pickle; whether it came to its end.

        Where an instruction can't be read, or is one that torch doesn't know, torch's unpickler
        stops too, so nothing after it costs anything.
        """
        self.stack: list[Any] = []
        self.marks: list[list] = []
        self.memo: dict[int, _Item] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                step = _STEPS.get(opcode.name)
                if step is None:
                    return opcode.name == "STOP"
                step(self, argument)
        except CheckpointError:
            raise
        except (ValueError, IndexError, KeyError):
            return False
        return True

    def check_storages(self, sizes: dict[str, int] | None) -> None:
        """Compare the sizes of the storages with those of the parts of the file.

        Args:
            sizes: Bytes of each part by its key; ``None`` where they follow in one piece.
        """
        fits = sum(self.storages.values()) <= self.size
        if sizes is not None:
            fits = all(sizes.get(str(key)) == size for key, size in self.storages.items())
        if not fits:
            raise CheckpointError(
                f"{self.path} is damaged: it has not the bytes that its tensors ask for. Copy or "
                "download it again."
            )

    def take(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise CheckpointError(
                f"{self.path} asks for far more memory than its {self.size:,} bytes: refused. "
                "Save the state dict alone with torch.save, where the file comes from."
            )

    def push(self, item: _Item = _OTHER, cost: int = _OBJECT) -> None:
        self.take(cost)
        self.stack.append(item)

    def pop_mark(self) -> list[_Item]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_of(self, items: list[_Item]) -> None:
        depth = 1 + max((item.depth for item in items), default=0)
        if depth > _DEEPEST:
            raise CheckpointError(
                f"{self.path} nests tuples more than {_DEEPEST} deep: refused. Save the state "
                "dict alone with torch.save, where the file comes from."
            )
        value = tuple(items) if len(items) <= 6 else None
        weight = 8 + sum(item.weight for item in items)
        self.push(_Item(min(weight, 1 << 62), depth, value), _OBJECT + 8 * len(items))

    def number(self, argument: Any) -> None:
        self.push(_Item(value=argument))

    def text(self, argument: Any) -> None:
        # Small texts may be keys of storages; each is a copy of its bytes in the file.
        value = argument if len(argument) < 100 else None
        self.push(_Item(8 + 4 * len(argument), value=value), _OBJECT + len(argument))

    def name(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if _COSTLY.fullmatch(name):
            raise CheckpointError(
                f"{self.path} asks for {name[:80]!r}, which is no plain data: refused, nothing was "
                "run.\nSave the state dict alone with torch.save, where the file comes from, and "
                "pass that."
            )
        self.push(_Item(value=name))

    def mark(self, argument: Any) -> None:
        self.take(_OBJECT)
        self.marks.append(self.stack)
        self.stack = []

    def put(self, argument: int) -> None:
        self.take(_OBJECT)
        self.memo[argument] = self.stack[-1]

    def get(self, argument: int) -> None:
        self.push(self.memo[argument], 8)

    def append(self, items: list[_Item]) -> None:
        # A set may be made of the list, and then hashes them.
        self.take(sum(item.weight for item in items))

    def set_items(self, items: list[_Item]) -> None:
        # Keys are hashed: a tuple with all that it refers to.
        self.take(sum(2 * _OBJECT + item.weight for item in items[::2]))

    def call(self, argument: Any) -> None:
        arguments, _ = self.stack.pop(), self.stack.pop()
        self.push(_OTHER, _OBJECT + arguments.weight)

    def build(self, argument: Any) -> None:
        self.take(_OBJECT + self.stack.pop().weight)

    def storage(self, argument: Any) -> None:
        identity = self.stack.pop().value
        if isinstance(identity, tuple) and len(identity) >= 5:
            _, kind, key, _, count = (item.value for item in identity[:5])
            self.storages[key] = count * _item_size(kind)
        self.push()


def _item_size(kind: str) -> int:
    """Bytes of an element of a storage; one without a kind counts bytes."""
    dtype = _DTYPES.get(str(kind).rpartition(".")[2])
    return 1 if dtype is None else dtype.itemsize


def _tuple(count: int):
    def step(scan: _Scan, argument: Any) -> None:
        items = scan.stack[-count:] if count else []
        del scan.stack[len(scan.stack) - len(items) :]
        scan.tuple_of(items)

    return step


def _object(scan: _Scan, argument: Any) -> None:
    scan.push()


def _append(scan: _Scan, argument: Any) -> None:
    scan.append([scan.stack.pop()])


def _set_item(scan: _Scan, argument: Any) -> None:
    items = scan.stack[-2:]
    del scan.stack[-2:]
    scan.set_items(items)


# The instructions of torch's unpickler; STOP ends, and any other makes it fail.
_STEPS = {
    "PROTO": lambda scan, argument: None,
    "GLOBAL": _Scan.name,
    "NEWOBJ": _Scan.call,
    "REDUCE": _Scan.call,
    "BUILD": _Scan.build,
    "APPEND": _append,
    "APPENDS": lambda scan, argument: scan.append(scan.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda scan, argument: scan.set_items(scan.pop_mark()),
    "MARK": _Scan.mark,
    "TUPLE": lambda scan, argument: scan.tuple_of(scan.pop_mark()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "EMPTY_TUPLE": _tuple(0),
    **dict.fromkeys(["NONE", "NEWFALSE", "NEWTRUE"], _object),
    **dict.fromkeys(["EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"], _object),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"], _Scan.number),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINSTRING"], _Scan.text),
    "BINPERSID": _Scan.storage,
    **dict.fromkeys(["BINGET", "LONG_BINGET"], _Scan.get),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], _Scan.put),
}
