"""What holds for every operator, on every backend; a test file of an operator inherits it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import acmix
from acmix.backends import cpu
from acmix.backends.cpu import library
from operators import Case, Operator, Recorder, stored
from support import gradients

NO_KERNELS = bool(cpu.why_not("sliding_window_attention", torch.empty(0)))
needs_kernels = pytest.mark.skipif(NO_KERNELS, reason="the CPU kernels can't be built here")
HALF = (torch.float16, torch.bfloat16)
ANY_CASE = st.builds(
    Case,
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    batch=st.integers(0, 3),
    heads=st.integers(1, 7),
    depth=st.integers(1, 19),
    kernel_conv=st.sampled_from([1, 3]),
    reflect=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last"]),
)
# Far more than the map has; in 32 bits their products would overflow.
BEYOND = {
    "dilation": Case((5, 7), dilation=10**6),
    "stride": Case((5, 7), 3, stride=10**6),
    "kernel": Case((5, 7), 41, batch=1, heads=1, depth=2),
    "everything": Case((5, 7), 9, stride=2**31 - 1, dilation=2**31 - 1),
}
SMALL = Case((5, 6), 3, stride=2, batch=1, heads=2, depth=2)


class Contract:
    """Tests of any operator; ``operator`` is the one."""

    operator: Operator
    backends = (pytest.param("cpu", marks=needs_kernels), "torch")
    # Of the error budget.
    sizes = {"strided": Case((13, 11), stride=2, heads=4, depth=16)}

    def pytest_generate_tests(self, metafunc):
        operator, wanted = self.operator, metafunc.fixturenames
        named = dict(case=operator.cases | operator.others, sizes=self.sizes, beyond=BEYOND)
        for name, cases in named.items():
            if name in wanted:
                metafunc.parametrize(name, cases.values(), ids=cases)
        if "backend" in wanted:
            metafunc.parametrize("backend", self.backends)

    @pytest.fixture(autouse=True)
    def _unwritten_memory_is_nan(self):
        """What a kernel forgets to write shows."""
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)

    def test_matches_reference(self, case, backend):
        self.operator.check(case, backend)

    def test_matches_reference_on_any_shape(self):
        backends = [getattr(backend, "values", (backend,))[0] for backend in self.backends]

        @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(ANY_CASE, st.sampled_from([None, *backends][NO_KERNELS:]))
        def check(case, backend):
            self.operator.check(case, backend)

        check()

    @pytest.mark.parametrize("dtype", [*HALF, torch.float32])
    def test_error_budget(self, sizes, dtype, backend):
        self.operator.check_budget(sizes, backend, dtype)

    def test_gradcheck(self, backend):
        inputs = [x.requires_grad_() for x in self.operator.inputs(SMALL)]
        run = self.operator.on(SMALL, backend)
        assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-4)

    def test_window_beyond_the_map(self, beyond, backend):
        self.operator.check(beyond, backend)

    def test_not_a_number_stays_where_it_belongs(self, backend):
        case = Case((9, 20), 3, stride=2, heads=4, depth=4)
        for i, name in enumerate(self.operator.shapes(case)):
            inputs = self.operator.inputs(case)
            inputs[i].view(-1)[inputs[i].numel() // 2] = float("nan")
            expected = self.operator.reference_on(case)(*inputs)
            assert expected.isnan().any(), name
            actual = self.operator.on(case, backend)(*inputs)
            torch.testing.assert_close(actual, expected, equal_nan=True, msg=name)


class ArgumentContract(Contract):
    """Tests of what a function does before it chooses a backend."""

    def test_wrong_sizes_are_named(self, backend):
        inputs, options = self.operator.inputs(SMALL), self.operator.options(SMALL)
        for name in self.operator.window:
            for wrong in (0, -1, True, 1.5, 2**62, 2**62 + 1, *[4] * (name == "kernel_size")):
                message = rf"{name}={wrong}: give an? (positive|odd|integer)"
                with pytest.raises(acmix.InputError, match=message):
                    self.operator.call(*inputs, **{**options, name: wrong}, backend=backend)

    @pytest.mark.parametrize("change", [lambda x: x[0], lambda x: x[None]], ids=["less", "more"])
    def test_wrong_ranks_are_named(self, change, backend):
        for name in self.operator.shapes(SMALL):
            self._refuses(name, change, r"(\.shape)?=\(.*\): (give|must be)", backend)

    def test_other_dtypes_are_named(self, backend):
        first, *others = self.operator.shapes(SMALL)
        for name in others:
            if name not in self.operator.mixed:
                message = f"=torch.float32 on cpu: must be torch.float64 on cpu, like {first}"
                self._refuses(name, lambda x: x.float(), message, backend)

    def _refuses(self, name, change, message, backend):
        """The tensor of this name, changed, is named in an error."""
        names = self.operator.shapes(SMALL)
        inputs = dict(zip(names, self.operator.inputs(SMALL), strict=True))
        inputs[name] = change(inputs[name])
        with pytest.raises(acmix.InputError, match=name + message):
            self.operator.call(*inputs.values(), **self.operator.options(SMALL), backend=backend)

    def test_wrong_backend_is_named(self):
        message = "backend='troch': choose from cuda, cpu, torch, reference; did you mean 'torch'"
        with pytest.raises(acmix.InputError, match=message):
            self.operator.on(SMALL, "troch")(*self.operator.inputs(SMALL))

    def test_integers_find_no_backend(self):
        inputs = [x.long() for x in self.operator.inputs(SMALL)]
        message = "torch: dtype torch.int64 is not floating point"
        with pytest.raises(acmix.BackendError, match=message):
            self.operator.on(SMALL, None)(*inputs)


class RegisteredContract(Contract):
    """Tests of an operator that is registered with torch: schema, fake, gradient, kernels."""

    # Of the backend whose registration is tested.
    registered = "cpu"
    # Layers that are folded into the kernels, and others.
    registrations = {"small": SMALL}

    def pytest_generate_tests(self, metafunc):
        super().pytest_generate_tests(metafunc)
        if "registration" in metafunc.fixturenames:
            cases = self.registrations
            metafunc.parametrize("registration", cases.values(), ids=cases)

    @pytest.mark.parametrize(
        ("layout", "dtype"), [("contiguous", torch.float16), ("channels_last", torch.float64)]
    )
    def test_registration(self, registration, layout, dtype):
        for op, arguments in self._calls(registration, layout, dtype):
            first = not op._schema.name.endswith("_backward")
            # A gradient can't be differentiated, and torch differentiates what it traces.
            arguments = [
                x.detach().requires_grad_(first) if isinstance(x, torch.Tensor) else x
                for x in arguments
            ]
            torch.library.opcheck(op, tuple(arguments))

    def _calls(self, case, layout, dtype):
        """Every operator that forward and backward call, with its arguments."""
        leaves = [
            None if x is None else stored(x, layout).detach().requires_grad_()
            for x in self.operator.inputs(case, dtype)
        ]
        with Recorder() as recorder:
            out = self.operator.call(
                *leaves, **self.operator.options(case), backend=self.registered
            )
            out.square().sum().backward()
        assert len(recorder.calls) == 2
        return recorder.calls

    def test_second_derivative_is_refused(self):
        inputs = [x.requires_grad_() for x in self.operator.inputs(SMALL)]
        out = self.operator.on(SMALL, self.registered)(*inputs)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only: use backend='torch'"):
            grads[0].sum().backward()
        out = self.operator.on(SMALL, "torch")(*inputs)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        grads[0].square().sum().backward()
        assert inputs[0].grad.isfinite().all()


@needs_kernels
class CpuContract(RegisteredContract, ArgumentContract):
    """Tests of an operator with CPU kernels."""

    # Rows that fill vectors or not, narrow maps whose heads share one.
    vectors = (
        Case((11, 9), 5, stride=2, depth=37),
        Case((4, 4), heads=8, depth=16),
        Case((6, 40), 3, dilation=2, batch=1, heads=5),
    )

    threads = {
        "whole rows": Case((28, 28), batch=2, heads=4, depth=16),
        "heads that share vectors": Case((40, 33), batch=3, heads=5, depth=20),
    }

    def pytest_generate_tests(self, metafunc):
        super().pytest_generate_tests(metafunc)
        if "threaded" in metafunc.fixturenames:
            metafunc.parametrize("threaded", self.threads.values(), ids=self.threads)

    @pytest.mark.parametrize("isa", library.ISAS)
    def test_every_variant_matches_reference(self, isa, monkeypatch):
        if isa not in library.load().isas:
            pytest.skip(f"this machine can't run {isa}")
        monkeypatch.setattr(library.load(), "isa", isa)
        for case in self.vectors:
            self.operator.check(case, "cpu")
            self.operator.check_budget(case, "cpu", torch.float32)

    def test_result_does_not_depend_on_the_threads(self, threaded):
        inputs, results = self.operator.inputs(threaded, torch.float32), []
        before = torch.get_num_threads()
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(gradients(self.operator.on(threaded, "cpu"), *inputs))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=0, atol=0)

    def test_result_has_the_memory_format_of_the_maps(self):
        for layout in ("contiguous", "channels_last"):
            inputs = [stored(x, layout) for x in self.operator.inputs(self.vectors[0])]
            out = self.operator.call(*inputs, **self.operator.options(self.vectors[0]))
            image = out.flatten(1, -3)
            if layout == "channels_last" and self.operator.keeps_format:
                assert image.is_contiguous(memory_format=torch.channels_last)
            else:
                assert image.is_contiguous()

    def test_comes_first(self):
        inputs = self.operator.inputs(SMALL, torch.float32)
        chosen, named = (self.operator.on(SMALL, name)(*inputs) for name in (None, "cpu"))
        assert torch.equal(chosen, named)
        assert type(chosen.grad_fn) is type(named.grad_fn)
