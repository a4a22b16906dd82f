"""Whole layers as they run on a CUDA device."""

import copy

import pytest
import torch

from layers import LAYERS, randomised
from operators import Recorder
from support import gradients

KERNELS = {
    "ACmix2d": {"paths"},
    "WindowACmix": {"convolution"},
    "patchwise": {"aggregation", "convolution"},
    "pairwise": {"aggregation", "convolution", "difference"},
    "GlobalACmix": {"convolution"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_reference(emulated, name):
    layer = randomised(LAYERS[name].make()).double()
    x, *others = LAYERS[name].inputs(9, 7)
    results = []
    for backend in ("reference", None):
        twin = copy.deepcopy(layer)
        twin.backend = backend
        with Recorder() as recorder:
            out, grads = gradients(lambda x, twin=twin: twin(x, *others), x.double())
        results.append([out, *grads, *(p.grad for p in twin.parameters())])
    torch.testing.assert_close(*results)
    called = {op._schema.name.removeprefix("acmix::") for op, _ in recorder.calls}
    assert called == KERNELS[name] | {f"{kernel}_backward" for kernel in KERNELS[name]}
