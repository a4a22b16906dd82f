"""Layers beside tensors that the authors' released code made."""

import pytest

from operator_contract import needs_kernels

BACKENDS = [pytest.param("cpu", marks=needs_kernels), "torch", "reference", None]


def assert_reproduces(layer, case, *inputs):
    """Output, and gradients of input and parameters, are those of the case."""
    x = case["input"].clone().requires_grad_()
    out = layer(x, *inputs)
    assert (out - case["output"]).abs().max() <= 1e-5
    out.backward(case["grad_output"])
    expected = {"input": case["grad_input"], **case["grad_params"]}
    actual = {"input": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        # Only differences of the position count: the gradient of its bias is noise about zero.
        scale = max(grad.abs().max().item(), 1.0 if name == "conv_p.bias" else 0.0)
        assert (actual[name] - grad).abs().max() <= 1e-4 * scale, name
