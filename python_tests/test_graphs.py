"""Graphs that were made under other circumstances than they are used in: without a gradient, with another batch or
vocabulary. The right value and gradient, or an error; never a number of the batch that was traced."""

import warnings

import pytest
import torch
from cases import F16, F32, name_of
from torch.fx.experimental.proxy_tensor import make_fx

import kdkernels as kd

pytestmark = pytest.mark.usual_memory

CALLS = {
    "divergence": lambda x, t, y: kd.divergence(x, t, temperature=2.0),
    "rows": lambda x, t, y: kd.divergence(x, t, kd.TotalVariation(), reduction="none").square().sum(),
    "batchmean": lambda x, t, y: kd.divergence(x, t, reduction="batchmean"),
    "masked": lambda x, t, y: kd.divergence(x, t, mask=y > 2, weight=y / 5),
    "distillation": lambda x, t, y: kd.distillation(x, t, y, temperature=2.0),
    "alpha per row": lambda x, t, y: kd.distillation(x, t, y, alpha=t[:, 0].float().sigmoid()),
    "trilateral": lambda x, t, y: kd.trilateral_distances(x, t, y).sum(),
    "softmax": lambda x, t, y: (kd.log_softmax(x, temperature=2.0) * t).float().sum(),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
EITHER_GRADIENT = pytest.mark.parametrize("wanted", [False, True], ids=["made without gradient", "made with one"])
TRACED = (4, 11)
SIZES = pytest.mark.parametrize("size", [TRACED, (9, 11), (9, 50), (4, 50), (1, 11)], ids=str)


class Module(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.head = torch.nn.Parameter(torch.eye(TRACED[1]))

    def forward(self, x, t, y):
        return self.call(x @ self.head.to(x.dtype), t, y)


class Plain(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, t, y):
        return self.call(x, t, y)


def inputs(size, dtype):
    generator = torch.Generator().manual_seed(size[0] * size[1])
    x, t = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    return x, t, torch.randint(0, size[1], size[:1], generator=generator)


def traced(make, call, dtype, wanted):
    x, t, y = inputs(TRACED, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a tracer says about Python's numbers
        return make(call)(x.requires_grad_(wanted), t, y)


def assert_right(graph, call, size, dtype):
    """Value and gradient of the graph are the call's own."""
    x, t, y = inputs(size, dtype)
    results = []
    for function in (call, graph):
        leaf = x.clone().requires_grad_()
        value = function(leaf, t, y)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=2e-3 if dtype == F16 else 1e-6, atol=1e-5)


@EVERY_CALL
@EVERY_DTYPE
@EITHER_GRADIENT
@SIZES
def test_jit_trace(call, dtype, wanted, size):
    graph = traced(lambda f: lambda *a: torch.jit.trace(f, a), call, dtype, wanted)
    assert_right(graph, call, size, dtype)


@EVERY_CALL
def test_jit_trace_of_a_module_with_weights_passes_its_own_check(call):
    traced(lambda f: lambda *a: torch.jit.trace(Module(f), a, check_trace=True), call, F32, False)


@EVERY_CALL
@EVERY_DTYPE
@EITHER_GRADIENT
@SIZES
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx(call, dtype, wanted, size, mode):
    graph = traced(lambda f: make_fx(f, tracing_mode=mode), call, dtype, wanted)
    assert_right(graph, call, size, dtype)


@EVERY_CALL
@EVERY_DTYPE
@EITHER_GRADIENT
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(call, dtype, wanted, dynamic):
    batch = torch.export.Dim("batch", min=2, max=99)
    shapes = ({0: batch}, {0: batch}, {0: batch}) if dynamic else None
    with torch.set_grad_enabled(wanted):
        export = lambda f: lambda *a: torch.export.export(Plain(f), a, dynamic_shapes=shapes).module()  # noqa: E731
        graph = traced(export, call, dtype, wanted)
    assert_right(graph, call, (9, 11) if dynamic else TRACED, dtype)


def test_leading_dimensions_are_no_part_of_a_graph():
    cut = [(torch.randn(*rows, 11), torch.randn(*rows, 11), torch.randint(0, 11, rows)) for rows in ((2, 2), (3, 5))]
    graph = make_fx(lambda *a: kd.distillation(*a))(*cut[0])
    torch.testing.assert_close(graph(*cut[1]), kd.distillation(*cut[1]))
