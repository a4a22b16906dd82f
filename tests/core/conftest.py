"""Fixtures for tests of the CPU kernels."""

import platform

import pytest

from acmix.backends.cpu import build, library


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A library for any machine, with vectors of 64 bytes, and tiles that are arrays."""
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", [*build._FLAGS, "-O1", "-DACMIX_WIDE"])
        # Of a machine whose compiler's own choice is the only variant.
        patch.setattr(platform, "machine", lambda: "any")
        patch.setattr(build, "knows_tiles", lambda compiler: True)
        patch.setattr(build, "_TILED_VARIANT", "baseline")
        patch.setattr(build, "_TILED_FLAGS", ["-DACMIX_EMULATED"])
        path = build.build(tmp_path_factory.mktemp("wide") / "libacmix_cpu.so", compiler)
        patch.delenv("ACMIX_CPU_ISA", raising=False)
        loaded = library.Library(path)
    assert loaded.isa == "baseline"
    return loaded
