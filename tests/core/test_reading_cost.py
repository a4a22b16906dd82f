"""Small files can't make the reader take much memory or time, and damaged ones are noticed."""

import os
import pickle
import random
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch

from acmix.checkpoint import read_checkpoint
from acmix.digests import KEY, digests_of
from acmix.errors import CheckpointError
from hostile import BOMBS, entry, legacy, tensor, with_pickle

MIB = 1 << 20


def written(folder, content):
    (folder / "a.pth").write_bytes(content)
    return folder / "a.pth"


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


@pytest.mark.parametrize("make", [with_pickle, legacy])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_a_small_cost(name, make, tmp_path):
    path = written(tmp_path, make(BOMBS[name]))
    seconds, memory, status = cost_of_reading(path)
    assert os.waitstatus_to_exitcode(status) == 2
    assert seconds < 5
    assert memory < 4 * path.stat().st_size + 200 * MIB


def test_a_storage_of_another_size_than_its_part_is_refused(tmp_path):
    for count in (3, 5):
        path = written(tmp_path, with_pickle(entry(tensor(b"FloatStorage", count))))
        with pytest.raises(CheckpointError, match="has not the bytes that its tensors ask for"):
            read_checkpoint(path)
    path = written(tmp_path, with_pickle(entry(tensor(b"FloatStorage", 4))))
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
        for name, weight in content["model"].items():
            assert torch.equal(read["model"][name], weight)
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
