"""The examples in the docstrings of the public names run, and every layer and function has one."""

import copy
import doctest
import inspect

import pytest
import torch

import acmix
from acmix.complexity import count_multiply_adds

WITHOUT = {name for name in acmix.__all__ if name.endswith("Error")} | {"Replacement"}
NAMES = [name for name in acmix.__all__ if callable(getattr(acmix, name)) and name not in WITHOUT]


def examples(public):
    """The examples of a name's docstring, which see the public names and torch."""
    names = {name: getattr(acmix, name) for name in acmix.__all__}
    names |= {"torch": torch, "copy": copy, "count_multiply_adds": count_multiply_adds}
    parser = doctest.DocTestParser()
    return parser.get_doctest(inspect.getdoc(public), names, public.__name__, None, None)


@pytest.mark.parametrize("public", [*(getattr(acmix, name) for name in NAMES), count_multiply_adds])
def test_examples_run(public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = examples(public)
    assert found.examples
    report = []
    assert doctest.DocTestRunner().run(found, out=report.append).failed == 0, "".join(report)
