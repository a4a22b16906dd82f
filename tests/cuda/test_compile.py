"""Every instantiation compiles for every architecture without spilling a register."""

import pytest
import torch

from acmix.backends.cuda import sources


def check(compiler, stem, dtype, arch):
    usages = compiler.compile_source(stem, dtype, arch)
    assert [usage.name for usage in usages] == sources.names(stem, dtype)
    spilled = [usage for usage in usages if usage.spilled]
    assert not spilled


@pytest.mark.parametrize("stem", ["aggregation", "difference"])
def test_float_compiles_without_spills(compiler, stem):
    check(compiler, stem, torch.float32, arch=80)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [75, *(pytest.param(arch, marks=pytest.mark.thorough) for arch in (80, 86, 90, 100, 120))],
)
@pytest.mark.parametrize("stem", sources.SOURCES)
def test_every_type_compiles_without_spills(compiler, stem, arch):
    for dtype in sources.TYPES:
        check(compiler, stem, dtype, arch)


def test_error_names_source_and_architecture(compiler, monkeypatch):
    text = sources.source("difference").replace("Offset plane", "Ofset plane", 1)
    monkeypatch.setattr(sources, "source", lambda stem: text)
    with pytest.raises(RuntimeError, match=r"difference\.cu, sm_80.*\n(.*\n)*.*Ofset"):
        compiler.compile_source("difference", torch.float32, 80)


def test_spills_are_counted(compiler, monkeypatch):
    text = sources.source("attention")
    tight = text.replace("(128, KEY_BLOCKS<T, K, S>)", "(128, 8)")
    assert tight != text
    monkeypatch.setattr(sources, "source", lambda stem: tight)
    name = "attention_grad_key<float, 7, 1>"
    monkeypatch.setattr(sources, "names", lambda stem, dtype: [name])
    (usage,) = compiler.compile_source("attention", torch.float32, 80)
    assert usage.registers <= 64
    assert usage.spilled > 0
