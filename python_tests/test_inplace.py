"""inplace=True: the same gradient in the student's own buffer, and an error for whoever still wants the logits."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, pair

import kdkernels as kd

DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
KEPT = pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)  # float16's gradient is made in backward
TOLERANCE = {F64: 1e-13, F32: 1e-6, BF16: 2**-7, F16: 2e-3}


def grad_of(where, base, teacher, make=lambda x: x * 1.0, factor=1.0, **options):
    """d loss / d base through logits that ``make`` computes from it."""
    base = base.detach().clone().requires_grad_()
    loss = kd.divergence(make(base), teacher, backend=where.backend, **options)
    (factor * loss).sum().backward()
    return loss.detach(), base.grad


def same(got, wanted, dtype):
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=1e-15 if dtype == F64 else 1e-7
    )


@DTYPES
@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
@pytest.mark.parametrize("factor", [1.0, -3.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_value_and_gradient(where, dtype, loss, factor, reduction):
    base, teacher = pair(5, 100, dtype=dtype, device=where.device)
    options = {"loss": loss, "reduction": reduction, "factor": factor, "temperature": 2.0}
    plain, taken = (grad_of(where, base, teacher, inplace=inplace, **options) for inplace in (False, True))
    same(taken[0], plain[0], F64 if dtype == F64 else F32)
    same(taken[1], plain[1], dtype)


@pytest.mark.parametrize("op", ["distillation", "vocab_size", "mask"])
def test_same_with_everything_else(where, op):
    base, teacher = pair(5, 100, dtype=F64, device=where.device)
    options = {
        "distillation": {"labels": torch.arange(5, device=where.device), "alpha": 0.3},
        "vocab_size": {"vocab_size": 60},
        "mask": {"mask": torch.arange(5, device=where.device) > 1, "weight": torch.rand(5, device=where.device)},
    }[op]
    function = kd.distillation if op == "distillation" else kd.divergence
    gradients = []
    for inplace in (False, True):
        leaf = base.detach().clone().requires_grad_()
        function(leaf * 1.0, teacher, inplace=inplace, backend=where.backend, **options).backward()
        gradients.append(leaf.grad)
    same(gradients[1], gradients[0], F64)


@KEPT
def test_the_buffer_is_reused(kernel, dtype):
    """The gradient that reaches the logits' producer lies at the address where the logits were."""
    base, teacher = pair(5, 100, dtype=dtype, device=kernel.device)
    seen = []

    class Producer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(gradient.data_ptr())
            return gradient.clone()

    z = Producer.apply(base)
    address = z.data_ptr()
    kd.divergence(z, teacher, inplace=True, backend=kernel.backend).backward()
    assert seen == [address]


@KEPT
@pytest.mark.parametrize("later", ["exp", "loss", "view", "before"])
def test_a_later_differentiable_use_raises(kernel, dtype, later):
    """Whatever still needs the logits for its own backward must not compute with what replaced them."""
    base, teacher = pair(5, 100, dtype=dtype, device=kernel.device)
    z = base * 1.0
    saved = z.sin() if later == "before" else None  # sin keeps its argument for its backward
    flat = z.view(-1) if later == "view" else None
    loss = kd.divergence(z, teacher, inplace=True, backend=kernel.backend)
    with pytest.raises(RuntimeError, match="(?i)inplace|in-place|overwritten|modified"):
        other = {
            "exp": lambda: z.exp().sum(),
            "loss": lambda: kd.divergence(z, teacher, kd.ReverseKL(), backend=kernel.backend),
            "view": lambda: flat.exp().sum(),
            "before": lambda: saved.sum(),
        }[later]()
        (loss + other).backward()


@pytest.mark.parametrize("twice", [True, False])
def test_two_losses_on_one_buffer_raise(kernel, twice):
    """The second loss would read the first one's gradient as logits."""
    base, teacher = pair(5, 100, device=kernel.device)
    z = base * 1.0
    first = kd.divergence(z, teacher, inplace=True, backend=kernel.backend)
    with pytest.raises(RuntimeError, match="(?i)inplace|in-place|overwritten|modified"):
        (first + kd.divergence(z, teacher, inplace=twice, backend=kernel.backend)).backward()


def test_a_leaf_raises_and_stays(where):
    student, teacher = pair(5, 100, device=where.device)
    before = student.detach().clone()
    with pytest.raises(ValueError, match="inplace=True needs logits that some operation computed, got a leaf"):
        kd.divergence(student, teacher, inplace=True, backend=where.backend)
    assert torch.equal(student.detach(), before)


@pytest.mark.parametrize("how", ["no_grad", "plain tensor"])
def test_without_grad_nothing_is_written(where, how):
    """No gradient is wanted, so there is none to put anywhere: evaluation may keep its logits."""
    student, teacher = pair(5, 100, device=where.device)
    if how == "plain tensor":
        student = student.detach()
    before = student.detach().clone()
    with torch.set_grad_enabled(how != "no_grad"):
        kd.divergence(student, teacher, inplace=True, backend=where.backend)
    assert torch.equal(student.detach(), before)
    assert student._version == 0


@DTYPES
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_kept_graph_gives_the_same_twice(where, dtype, factor):
    base, teacher = pair(5, 100, dtype=dtype, device=where.device)
    _, wanted = grad_of(where, base, teacher, factor=factor)
    leaf = base.detach().clone().requires_grad_()
    loss = factor * kd.divergence(leaf * 1.0, teacher, inplace=True, backend=where.backend)
    for again in (True, True, False):
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=again)
        same(gradient, wanted, dtype)
        gradient.fill_(torch.nan)  # what came out belongs to the user


VIEWS = {
    "lm_head(x).view(-1, V)": lambda x, w: (x @ w).view(-1, 100),
    "flatten": lambda x, w: (x @ w).flatten(0, 1),
    "reshape": lambda x, w: (x @ w).reshape(-1, 100),
    "a slice of the vocabulary": lambda x, w: (x @ w)[..., :90],
    "every other row": lambda x, w: (x @ w).view(-1, 100)[::2],
    "not a view": lambda x, w: x @ w,
}
REFUSED = {
    "a slice of the time steps": lambda x, w: (x @ w)[:, :-1],
    "transposed": lambda x, w: (x @ w).transpose(0, 1),
    "columns apart": lambda x, w: (x @ w)[..., ::2],
    "expanded": lambda x, w: (x @ w)[:1].expand(2, 4, 100),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", [F32, F16, F64], ids=name_of)
def test_views_of_the_head_s_output(where, view, dtype):
    """What trainers pass; a view's buffer may be taken as well, and the head's own gradients must be right."""
    x, w = (
        logits(2, 4, 8, dtype=dtype, device=where.device),
        logits(8, 100, dtype=dtype, device=where.device, seed=1, spread=0.3),
    )
    teacher = logits(*view(x, w).shape, dtype=dtype, device=where.device, seed=2)
    results = []
    for inplace in (False, True):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, w)]
        loss = kd.divergence(view(*leaves), teacher, temperature=2.0, inplace=inplace, backend=where.backend)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for taken, plain in zip(results[1], results[0], strict=True):
        same(taken, plain, F64 if dtype == F64 else F16)


@pytest.mark.parametrize("view", REFUSED.values(), ids=REFUSED)
def test_views_whose_buffer_cannot_be_walked_are_refused(where, view):
    """An error that says so, and nothing written; a silent copy would give the memory back that was promised."""
    x = logits(2, 4, 8, device=where.device).requires_grad_()
    w = logits(8, 100, device=where.device, seed=1)
    z = view(x, w)
    before = z.detach().clone()
    with pytest.raises(ValueError, match="inplace=True needs rows that are contiguous, do not overlap"):
        kd.divergence(z, logits(*z.shape, device=where.device, seed=2), inplace=True, backend=where.backend)
    assert torch.equal(z.detach(), before)


@pytest.mark.parametrize("how", ["chunk", "split", "unbind"])
def test_views_that_autograd_does_not_follow_are_refused(where, how):
    """Several outputs of one node: PyTorch forbids to write into any of them, so that is said before it is done."""
    z = logits(4, 6, 100, device=where.device).requires_grad_() * 1.0
    view = getattr(z, how)(*((2,) if how != "unbind" else ()))[0]
    before = z.detach().clone()
    with pytest.raises((ValueError, RuntimeError), match="(?i)inplace|in-place|view"):
        kd.divergence(view, logits(*view.shape, seed=2, device=where.device), inplace=True, backend=where.backend)
    assert torch.equal(z.detach(), before)


@KEPT
def test_a_write_into_the_taken_buffer_is_noticed(kernel, dtype):
    """After the call the buffer holds the gradient: who writes there before backward must not get a wrong one."""
    base, teacher = pair(5, 100, dtype=dtype, device=kernel.device)
    z = base * 1.0
    loss = kd.divergence(z, teacher, inplace=True, backend=kernel.backend)
    with torch.no_grad():
        z.zero_()
    with pytest.raises(RuntimeError, match="(?i)inplace|in-place|modified"):
        loss.backward()


def test_a_teacher_in_the_same_memory(where):
    """Self-distillation against z.detach(): the right gradient (zero), or an error that says why not."""
    base, _ = pair(5, 100, dtype=F64, device=where.device)
    z = base * 1.0
    try:
        kd.divergence(z, z.detach(), inplace=True, backend=where.backend).backward()
    except (RuntimeError, ValueError) as error:
        assert "inplace" in str(error)
    else:
        assert float(base.grad.abs().max()) < 1e-15


def test_float16_tells_autograd_that_backward_overwrote_the_logits(kernel):
    """tanh saved the logits that its gradient replaces: its backward must not read them as if they were logits."""
    leaf = torch.randn(4, 50, device=kernel.device).half().requires_grad_()
    teacher = torch.randn(4, 50, device=kernel.device)
    loss = kd.divergence(torch.tanh(leaf), teacher, reduction="sum", inplace=True, backend=kernel.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_view_of_a_parameter_is_refused_before_it_is_written(kernel, dtype):
    parameter = torch.nn.Parameter(torch.randn(4, 50, device=kernel.device, dtype=dtype))
    before = parameter.detach().clone()
    with pytest.raises(ValueError, match="leaf"):
        kd.divergence(parameter.view(4, 50), torch.randn_like(before), inplace=True, backend=kernel.backend)
    assert torch.equal(parameter, before)


def test_the_buffer_is_let_go_with_the_graph(kernel):
    student = torch.randn(4, 50, device=kernel.device, requires_grad=True) * 1
    users = torch._C._storage_Use_Count(student.untyped_storage()._cdata)
    loss = kd.divergence(student, torch.randn(4, 50, device=kernel.device), inplace=True, backend=kernel.backend)
    loss.backward()
    # A trainer keeps the loss for its log: through it nothing may hold the gradient's memory.
    assert torch._C._storage_Use_Count(student.untyped_storage()._cdata) == users
