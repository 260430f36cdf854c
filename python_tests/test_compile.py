"""torch.compile and torch.library: one graph, the same numbers, and an operator that keeps its promises."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, pair

import kdkernels as kd

pytestmark = pytest.mark.usual_memory  # inductor plans memory itself; a filled torch.empty would change its graphs

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
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


def test_inplace_is_ignored_and_harmless(where):
    student, teacher = pair(5, 50, device=where.device)

    def step(z, t):
        z = z * 1.0
        return kd.divergence(z, t, inplace=True, backend=where.backend)

    check(*both(step, student, teacher))


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("variant", ["plain", "everything", "rows", "no gradient", "cut"])
def test_opcheck_divergence(kernel, utility, dtype, variant):
    student, teacher = pair(4, 7, dtype=dtype, device=kernel.device)
    wide = F64 if dtype == F64 else F32
    row = torch.rand(4, dtype=wide, device=kernel.device)
    labels = torch.tensor([0, 6, 3, 3], device=kernel.device)
    full = variant in ("everything", "rows")
    tensors = (labels, row, 1 - row) if full else (None, None, None)
    if variant == "no gradient":
        student = student.detach()
    # As the public function calls it: float16's gradient is left to the operator's backward.
    gradient = variant != "no gradient" and dtype != F16
    vocab, reduce = 5 if variant == "cut" else 7, variant != "rows"
    for loss in DEFAULT_LOSSES if variant == "plain" else DEFAULT_LOSSES[:1]:
        scalars = torch.tensor([loss.parameter(), 2.0, 0.7, 0.2 if full else 0.0], dtype=F64)
        call = (student, teacher, *tensors, loss.table(), scalars, loss.name, vocab, reduce, gradient, kernel.backend)
        torch.library.opcheck(torch.ops.kdkernels.divergence.default, call, test_utils=utility)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
@pytest.mark.parametrize("log", [False, True])
def test_opcheck_softmax(kernel, utility, dtype, log):
    z, upstream = pair(4, 7, dtype=dtype, device=kernel.device)
    temperature = torch.tensor([2.0], dtype=F64)
    torch.library.opcheck(
        torch.ops.kdkernels.softmax.default, (z, temperature, log, kernel.backend), test_utils=utility
    )
    output = torch.log_softmax(z, -1).detach() if log else torch.softmax(z, -1).detach()
    operator = torch.ops.kdkernels.softmax_backward.default
    torch.library.opcheck(operator, (upstream, output, temperature, log, kernel.backend), test_utils=utility)


def test_second_derivative_raises_when_compiled(kernel):
    student, teacher = pair(5, 50, device=kernel.device)
    step = torch.compile(
        lambda z: kd.divergence(z, teacher, backend=kernel.backend), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(RuntimeError):
        (gradient,) = torch.autograd.grad(step(student), student, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), student)


def test_export_keeps_the_batch_size_free(kernel):
    class Both(torch.nn.Module):
        def forward(self, student, teacher, labels):
            soft = kd.divergence(student, teacher, backend=kernel.backend)
            return soft + kd.distillation(student, teacher, labels, backend=kernel.backend)

    def batch(rows):
        labels = torch.arange(rows, device=kernel.device)
        return *(torch.randn(rows, 50, device=kernel.device) for _ in range(2)), labels

    free = {0: torch.export.Dim("rows")}
    program = torch.export.export(Both(), batch(4), dynamic_shapes=(free, free, free)).module()
    other = batch(7)
    torch.testing.assert_close(program(*other), Both()(*other))


def test_make_fx_records_the_operator_and_not_its_result(kernel):
    from torch.fx.experimental.proxy_tensor import make_fx

    pairs = [[torch.randn(4, 50, device=kernel.device) for _ in range(2)] for _ in range(2)]
    graph = make_fx(lambda z, t: kd.divergence(z, t, backend=kernel.backend))(*pairs[0])
    torch.testing.assert_close(graph(*pairs[1]), kd.divergence(*pairs[1]))


def test_forward_mode_and_vmap_get_plain_pytorch(kernel):
    from torch.autograd import forward_ad

    student, teacher, tangent = (torch.randn(4, 50, device=kernel.device) for _ in range(3))
    labels = torch.arange(4, device=kernel.device)
    with forward_ad.dual_level():
        loss = kd.divergence(forward_ad.make_dual(student, tangent), teacher)
        assert forward_ad.unpack_dual(loss).tangent is not None
        with pytest.raises(RuntimeError, match="forward-mode"):
            kd.divergence(forward_ad.make_dual(student, tangent), teacher, backend=kernel.backend)
    each = torch.func.vmap(kd.distillation)(student, teacher, labels)
    torch.testing.assert_close(each.mean(), kd.distillation(student, teacher, labels))
