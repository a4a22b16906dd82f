"""Small files can't make the reader take much memory or time, and damaged ones are noticed."""

import os
import pickle
import random
import signal
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from acmix.checkpoint import read_checkpoint
from acmix.digests import KEY, digests_of
from acmix.errors import CheckpointError

MIB = 1 << 20


def with_pickle(path, content):
    """A file of torch.save with another pickle in it."""
    torch.save({"weight": torch.arange(4.0)}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as source, zipfile.ZipFile(path, "w") as out:
        for name in source.namelist():
            out.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return path


def legacy(path, content):
    """The same in the format of torch's first versions."""
    head = [
        pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    path.write_bytes(b"".join(head) + content + pickle.dumps([], 2))
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def call(module, name, *arguments):
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def number(value):
    return b"J" + struct.pack("<i", value)


def entry(value, key=b"a"):
    return b"\x80\x02}" + text(key) + value + b"s."


def tuple_dag(depth):
    """A tuple of two that are the same tuple of two, and so on."""
    return b"K\x01" + b"".join(b"q%cq\xffh%c\x86" % (i, i) for i in range(depth))


def as_key(value):
    return b"\x80\x02}" + value + b"K\x01s."


STORAGE = call(
    "torch._utils", "_rebuild_tensor_v2", b"%s", b"K\x00", b"(%st", b"(K\x01t", b"\x89", b"]"
)


def tensor(kind, count):
    identity = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(b"0") + text(b"cpu")
    return STORAGE % (identity + number(count) + b"tQ", number(count))


ENCODED = call("_codecs", "encode", b"h\x01", text(b"utf-32"))
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
    "texts of texts": entry(text(b"x" * MIB) + b"q\x01" + 500 * ENCODED),
    "missing bytes": entry(tensor(b"FloatStorage", 10**9)),
}


def cost_of_reading(path):
    """Seconds and bytes that a process of its own needs, and how it ended."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    resident = int(pages) * os.sysconf("SC_PAGE_SIZE")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        code = 3
        try:
            read_checkpoint(path)
            code = 0
        except CheckpointError:
            code = 2
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return time.monotonic() - start, usage.ru_maxrss * 1024 - resident, status


@pytest.mark.parametrize("make", [with_pickle, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_a_small_cost(name, make, tmp_path):
    path = make(tmp_path / "bomb.pth", BOMBS[name])
    seconds, memory, status = cost_of_reading(path)
    assert os.waitstatus_to_exitcode(status) == 2
    assert seconds < 5
    assert memory < 4 * path.stat().st_size + 200 * MIB


def test_a_storage_of_another_size_than_its_part_is_refused(tmp_path):
    for count in (3, 5):
        path = with_pickle(tmp_path / "a.pth", entry(tensor(b"FloatStorage", count)))
        with pytest.raises(CheckpointError, match="has not the bytes that its tensors ask for"):
            read_checkpoint(path)
    path = with_pickle(tmp_path / "a.pth", entry(tensor(b"FloatStorage", 4)))
    assert torch.equal(read_checkpoint(path)["a"], torch.arange(4.0))


def test_a_tensor_that_is_its_storage_many_times_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="more than 4 times its size"):
        read_checkpoint(tmp_path / "a.pth")


def test_an_archive_that_unfolds_is_refused(tmp_path):
    torch.save({"a": torch.zeros(MIB)}, tmp_path / "whole.pth")
    packed = zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pth") as source, packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="unfolds to more than"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_tar_archive_is_no_checkpoint(tmp_path):
    import tarfile

    (tmp_path / "pickle").write_bytes(pickle.dumps(1))
    with tarfile.open(tmp_path / "a.pth", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(tmp_path / "pickle", "\udc80", recursive=False)
    assert (tmp_path / "a.pth").read_bytes()[:1] == b"\x80"
    with pytest.raises(CheckpointError, match="no checkpoint but a tar archive"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match="does not fit into the memory"):
        read_checkpoint(tmp_path / "a.pth")


def test_no_flipped_bit_passes_unnoticed(tmp_path):
    content = {"model": {"a": torch.arange(300.0), "b": torch.ones(3, 3)}, "epoch": 3}
    torch.save(content, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    path, draw = tmp_path / "flipped.pth", random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read = read_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        assert read["epoch"] == 3
        for name, tensor in content["model"].items():
            assert torch.equal(read["model"][name], tensor)
    assert refused > 100


def test_a_tensor_of_another_digest_is_named(tmp_path):
    content = {"model": {"a": torch.ones(3), "b": [torch.ones(2, dtype=torch.bfloat16)]}}
    digests = digests_of(content)
    assert sorted(digests) == ["model.a", "model.b.0"]
    torch.save({**content, KEY: digests}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")[KEY] == digests
    content["model"]["b"][0][1] = 2
    torch.save({**content, KEY: digests}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 of its tensors.*'model.b.0'"):
        read_checkpoint(tmp_path / "a.pth")
    del content["model"]["a"]
    torch.save({**content, KEY: digests}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="2 of its tensors"):
        read_checkpoint(tmp_path / "a.pth")
