"""torch.compile: one graph, and the same numbers."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, pair

import kdkernels as kd

pytestmark = pytest.mark.usual_memory  # inductor plans memory itself; a filled torch.empty would change its graphs

HALF = {F32: 1e-6, BF16: 2**-7, F16: 2**-10, F64: 1e-14}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(function, student, *arguments, compiler="aot_eager", **options):
    """(value, gradient) of the function as it is, and compiled into one graph."""
    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend=compiler, **options)):
        leaf = student.detach().clone().requires_grad_()
        value = f(leaf, *arguments)
        value.sum().backward()
        results.append((value.detach(), leaf.grad))
    return results


def check(eager, compiled, dtype=F32):
    assert [x.dtype for x in eager] == [x.dtype for x in compiled]
    torch.testing.assert_close(compiled[0], eager[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(compiled[1].double(), eager[1].double(), rtol=HALF[dtype], atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [(loss, F32) for loss in DEFAULT_LOSSES] + [(kd.JensenShannon(), dtype) for dtype in (BF16, F16, F64)],
    ids=name_of,
)
def test_train_step(where, loss, dtype):
    """Head, loss and backward in one graph, upstream other than 1."""
    x, w = (
        logits(6, 8, dtype=dtype, device=where.device),
        logits(8, 50, dtype=dtype, device=where.device, seed=1, spread=0.3),
    )
    teacher = logits(6, 50, device=where.device, seed=2)

    def step(x, w, teacher):
        return 0.3 * kd.divergence(x @ w, teacher, loss, temperature=2.0, backend=where.backend)

    check(*both(step, x, w, teacher), dtype)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_everything_optional(where, reduction):
    student, teacher = pair(4, 3, 50, device=where.device)
    mask, weight = torch.arange(12, device=where.device).view(4, 3) % 4 > 0, torch.rand(4, 3, device=where.device)
    normalizer = torch.tensor(7.0, device=where.device) if reduction == "mean" else None

    def step(z, teacher, mask, weight):
        return kd.divergence(
            z,
            teacher,
            mask=mask,
            weight=weight,
            reduction=reduction,
            normalizer=normalizer,
            vocab_size=40,
            backend=where.backend,
        )

    check(*both(step, student, teacher, mask, weight))


@pytest.mark.parametrize("alpha", [0.3, "per row"])
def test_distillation(where, alpha):
    student, teacher = pair(5, 50, device=where.device)
    labels = torch.tensor([0, -100, 49, 3, 7], device=where.device)
    share = (
        torch.linspace(0, 1, 5, device=where.device) if alpha == "per row" else torch.tensor(0.3, device=where.device)
    )

    def step(z, teacher, labels, share):
        by = share if alpha == "per row" else alpha
        return kd.distillation(z, teacher, labels, kd.SkewKL(), alpha=by, temperature=2.0, backend=where.backend)

    check(*both(step, student, teacher, labels, share))


@pytest.mark.parametrize("function", [kd.softmax, kd.log_softmax])
def test_softmax(where, function):
    student, _ = pair(5, 50, device=where.device)
    check(*both(lambda z: function(z, temperature=2.0, backend=where.backend).sin(), student))


def test_module(where):
    student, teacher = pair(5, 50, device=where.device)
    check(*both(kd.DivergenceLoss(kd.JensenShannon(0.3), temperature=2.0, backend=where.backend), student, teacher))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)
def test_inductor(kernel, dtype):
    """Once with the compiler that users have: code is generated around the operator."""
    student, teacher = pair(6, 50, dtype=dtype, device=kernel.device)

    def step(z, teacher):
        return (
            0.3 * kd.divergence(z * 2, teacher + 1, temperature=2.0, reduction="none", backend=kernel.backend).square()
        )

    eager, compiled = both(step, student, teacher, compiler="inductor")
    check(eager, compiled, dtype)


def test_no_grad(where):
    student, teacher = (x.detach() for x in pair(5, 50, device=where.device))
    compiled = torch.compile(
        lambda z, t: kd.divergence(z, t, backend=where.backend), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(student, teacher), kd.divergence(student, teacher, backend=where.backend))


def counted(function, **options):
    """The function compiled, and a list with one entry per graph that was made."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, fullgraph=True, backend=count, **options), graphs


def test_dynamic_batch_is_one_graph(kernel):
    step, graphs = counted(lambda z, t: kd.divergence(z, t, temperature=2.0, backend=kernel.backend), dynamic=True)
    for rows in (5, 3, 17, 64):
        student, teacher = pair(rows, 50, device=kernel.device)
        torch.testing.assert_close(step(student, teacher), kd.divergence(student, teacher, temperature=2.0))
    assert len(graphs) == 1, f"{len(graphs)} graphs for 4 batch sizes: a size was turned into a constant"


@pytest.mark.parametrize("what", ["temperature", "beta", "alpha"])
def test_a_schedule_of_a_parameter_works_and_is_followed(kernel, what):
    """Neither the first number for ever, nor a graph per number: the compiler gives up after eight of them."""
    student, teacher = pair(5, 50, device=kernel.device)
    labels = torch.arange(5, device=kernel.device)

    def step(z, t, value):
        if what == "temperature":
            return kd.divergence(z, t, temperature=value, backend=kernel.backend)
        if what == "beta":
            return kd.divergence(z, t, kd.JensenShannon(beta=value), backend=kernel.backend)
        return kd.distillation(z, t, labels, alpha=value, backend=kernel.backend)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for value in [0.05 + 0.07 * step for step in range(12)]:
        torch.testing.assert_close(compiled(student, teacher, value), step(student, teacher, value))


@pytest.mark.parametrize("shape", [(3,), (50, 3)], ids=str)
def test_new_coefficients_need_no_new_graph(kernel, shape):
    """Perturbed made inside of what is compiled, from coefficients that are scheduled or searched for."""
    student, teacher = pair(5, 50, device=kernel.device)
    run = lambda z, t, eps: kd.divergence(z, t, kd.Perturbed(eps), temperature=2.0, backend=kernel.backend)  # noqa: E731
    step, graphs = counted(run)
    for seed in range(12):
        values = [f(student, teacher, logits(*shape, device=kernel.device, seed=seed).abs()) for f in (run, step)]
        check(*((value.detach(), *torch.autograd.grad(value, student)) for value in values))
    assert len(graphs) == 1, f"{len(graphs)} graphs for 12 values of the coefficients"


def test_a_loss_with_coefficients_as_an_argument(where):
    """Another loss of the same class and shape is another loss: what was compiled for the first does not serve it."""
    student, teacher = pair(5, 50, device=where.device)
    run = lambda z, t, loss: kd.divergence(z, t, loss, backend=where.backend)  # noqa: E731
    step = torch.compile(run, fullgraph=True, backend="eager")
    for seed in range(3):
        loss = kd.Perturbed(logits(3, device=where.device, seed=seed).abs())
        torch.testing.assert_close(step(student, teacher, loss), run(student, teacher, loss))


@pytest.mark.parametrize(
    ("dtype", "squared", "means"),
    [(F32, False, True), (BF16, False, False), (F16, True, False), (F64, True, True)],
    ids=str,
)
def test_trilateral(where, dtype, squared, means):
    """A head before it and a controller after it, in one graph."""
    x, w = (logits(*size, dtype=dtype, device=where.device, spread=0.5) for size in ((6, 8), (8, 50)))
    teacher, labels = logits(6, 50, device=where.device, seed=2), torch.arange(6, device=where.device)
    table = logits(50, 50, device=where.device, seed=3).softmax(-1) if means else None

    def step(x, w, teacher, labels, table):
        d = kd.trilateral_distances(x @ w, teacher, labels, table, squared, backend=where.backend)
        return d.square().mean(-1).sigmoid()

    check(*both(step, x, w, teacher, labels, table), dtype)


def test_trilateral_of_a_dynamic_batch_is_one_graph(kernel):
    run = lambda z, t, y: kd.trilateral_distances(z, t, y, ignore_index=3, backend=kernel.backend)  # noqa: E731
    step, graphs = counted(run, dynamic=True)
    for rows in (5, 3, 17, 64):
        student, teacher = pair(rows, 50, device=kernel.device)
        labels = torch.arange(rows, device=kernel.device) % 50
        torch.testing.assert_close(step(student, teacher, labels), run(student, teacher, labels))
    assert len(graphs) == 1, f"{len(graphs)} graphs for 4 batch sizes: a size was turned into a constant"


def test_inplace_is_ignored_and_harmless(where):
    student, teacher = pair(5, 50, device=where.device)

    def step(z, t):
        z = z * 1.0
        return kd.divergence(z, t, inplace=True, backend=where.backend)

    check(*both(step, student, teacher))


def test_second_derivative_raises_when_compiled(kernel):
    student, teacher = pair(5, 50, device=kernel.device)
    step = torch.compile(
        lambda z: kd.divergence(z, teacher, backend=kernel.backend), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(RuntimeError):
        (gradient,) = torch.autograd.grad(step(student), student, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), student)
