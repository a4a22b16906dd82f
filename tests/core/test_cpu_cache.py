"""The cache of compiled kernels: what is loaded is what this user built."""

import os
import subprocess
import sys

import pytest

from acmix.backends.cpu.cache import checked_library
from support import ROOT

WHOLE = b"\x7fELF" + bytes(range(256))


@pytest.fixture
def cached(tmp_path):
    """A cached library and how often it was built."""
    path, built = tmp_path / "cache" / "lib.so", []

    def build():
        built.append(1)
        path.write_bytes(WHOLE)

    checked_library(path, build)
    assert built == [1]
    return path, build, built


def test_a_whole_library_is_built_once(cached):
    path, build, built = cached
    assert checked_library(path, build) == path
    assert built == [1]
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", WHOLE[:-1], WHOLE + b"x", b"another file"])
def test_a_damaged_library_is_built_anew(content, cached):
    path, build, built = cached
    path.write_bytes(content)
    checked_library(path, build)
    assert built == [1, 1]
    assert path.read_bytes() == WHOLE
    checked_library(path, build)
    assert built == [1, 1]


def spoil_missing(path):
    path.with_name("lib.so.sha256").unlink()


def spoil_folder(path):
    path.parent.chmod(0o777)


def spoil_mode(path):
    path.chmod(0o666)


def spoil_link(path):
    path.rename(path.with_name("other.so"))
    path.symlink_to("other.so")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes here")
@pytest.mark.parametrize("spoil", [spoil_missing, spoil_folder, spoil_mode, spoil_link])
def test_a_library_that_others_could_write_is_built_anew(spoil, cached):
    path, build, built = cached
    spoil(path)
    checked_library(path, build)
    assert built == [1, 1]
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(cached, monkeypatch):
    path, build, built = cached
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1, raising=False)
    with pytest.raises(OSError, match="belongs to another user.*ACMIX_CACHE_DIR"):
        checked_library(path, build)
    assert built == [1]


@pytest.mark.slow
def test_doing_without_the_library_is_logged_once(tmp_path):
    code = """
import torch, acmix
x = torch.randn(1, 1, 4, 9, 9)
for _ in range(3):
    acmix.sliding_window_attention(x, x, x)
"""
    (tmp_path / "lib.so").write_bytes(b"")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    env["ACMIX_CPU_LIBRARY"] = str(tmp_path / "lib.so")
    command = [sys.executable, "-c", code]
    logged = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stderr
    assert logged.count("the compiled CPU kernels are not used") == 1
    env["ACMIX_CPU_KERNELS"] = "0"
    logged = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stderr
    assert "kernels" not in logged
