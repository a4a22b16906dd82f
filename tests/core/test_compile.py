"""Operators and layers under torch.compile, with its C++ compiler: forward, backward, formats."""

import pytest
import torch

import operators
from acmix import ACmix2d, deploy
from layers import LAYERS, randomised
from operator_contract import needs_kernels
from operators import Case, stored

LAYOUTS = ("contiguous", "channels_last")
# With the compiled operator that each takes.
KERNELS = {
    "Attention": "attention",
    "Aggregation": "aggregation",
    "Convolution": "convolution",
    "SplitConvolution": "convolution",
    "Difference": "difference",
    "Mix": "mixed",
}
OPERATORS = (*KERNELS, "WindowAttention")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        " " in torch.__file__ and torch.__version__.startswith("2.9."),
        reason="torch 2.9 compiles nothing where its own path has a space",
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiles(function, leaves, parameters=()):
    """One graph that gives what eager gives, gradients too, and is not made again."""
    compiled = torch.compile(function, fullgraph=True)

    def run(call):
        out = call(*leaves)
        differentiable = [x for x in (*leaves, *parameters) if x.requires_grad]
        return out, torch.autograd.grad(out.square().sum(), differentiable)

    expected = run(function)
    torch.testing.assert_close(run(compiled), expected)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(run(compiled), expected)


def compile_layer(layer, inputs, layout):
    x, *others = inputs
    leaf = stored(x.double(), layout).detach().requires_grad_()
    layer = layer.double()
    assert_compiles(lambda x: layer(x, *others), [leaf], list(layer.parameters()))


def operators_of(function, *inputs, **options):
    """Names of our operators in the graph that Dynamo writes down."""
    names = set()

    def read(graph_module, _):
        targets = (str(node.target) for node in graph_module.graph.nodes)
        names.update(target for target in targets if target.startswith("acmix."))
        return graph_module

    torch.compile(function, fullgraph=True, backend=read, **options)(*inputs)
    return names


@needs_kernels
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_calls_take_the_kernels(name, dynamic):
    kind, case = getattr(operators, name)(), Case((9, 7), 3, stride=2, heads=2, depth=8)
    (used,) = operators_of(kind.on(case, None), *kind.inputs(case), dynamic=dynamic)
    assert used == f"acmix.{KERNELS[name]}.default"


@needs_kernels
@pytest.mark.parametrize("deployed", [False, True], ids=["", "deployed"])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers_take_the_operators_of_eager_mode(name, deployed):
    layer, inputs = LAYERS[name].make().eval(), LAYERS[name].inputs(9, 7)
    layer = deploy(layer) if deployed else layer
    with torch.no_grad(), operators.Recorder() as recorder:
        layer(*inputs)
    assert recorder.calls
    assert operators_of(layer, *inputs) == {str(function) for function, _ in recorder.calls}


def test_compiled_subclass_adds_the_paths_itself():
    class Sum(ACmix2d):
        def add_paths(self, att, conv):
            return att + conv

    layer, x = Sum(6, 8, 2, kernel_att=3).eval(), torch.randn(2, 6, 9, 7)
    assert "acmix.mixed.default" not in operators_of(layer, x)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


def test_compiled_transforms_take_plain_operators():
    layer = ACmix2d(4, 4, kernel_att=3)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())
    x = torch.randn(1, 4, 6, 5)
    assert operators_of(gradient, x) == set()
    torch.testing.assert_close(torch.compile(gradient, backend="eager")(x), gradient(x))


def test_acmix2d_compiles():
    compile_layer(ACmix2d(16, 32), (torch.randn(2, 16, 9, 7),), "contiguous")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_compiles(name, layout):
    kind, case = getattr(operators, name)(), Case((9, 7), 3, stride=2, heads=2, depth=8)
    leaves = [stored(x, layout).detach().requires_grad_() for x in kind.inputs(case)]
    assert_compiles(kind.on(case, None), leaves)


# One format a layer, and the others in a thorough run: to compile takes half a minute.
USUAL = {"ACmix2d": LAYOUTS, "patchwise": ("channels_last",)}
FORMATS = [
    pytest.param(
        name,
        layout,
        marks=[pytest.mark.thorough] * (layout not in USUAL.get(name, ("contiguous",))),
    )
    for name in LAYERS
    for layout in LAYOUTS
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), FORMATS)
def test_layer_compiles(name, layout):
    if name == "GlobalACmix" and torch.__version__.startswith("2.9."):
        pytest.skip("torch 2.9 compiles its own attention of float64 as one of float32")
    # At the start differences of positions have their mean, zero, at the kink of a ReLU.
    compile_layer(randomised(LAYERS[name].make()), LAYERS[name].inputs(9, 7), layout)


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(stride=2), dict(dilation=2, num_heads=8)], ids=str)
def test_acmix2d_with_options_compiles(options):
    compile_layer(ACmix2d(16, 32, **options), (torch.randn(2, 16, 9, 7),), "channels_last")
