"""What autograd hands to a loss and expects of it: any upstream, any number of backward walks, no wrong numbers."""

import pytest
import torch
from cases import ALL_LOSSES, BF16, F16, F32, F64, logits, name_of, pair, value_and_gradient

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", ALL_LOSSES, ids=name_of)
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
# float16 is walked again with the upstream inside, the others scale what is stored: both round once more, no more.
TOLERANCE = {F64: 1e-13, F32: 1e-5, BF16: 1.6e-2, F16: 2e-3}


def same(got, wanted, dtype, atol=1e-7):
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=1e-15 if dtype == F64 else atol
    )


@EVERY_LOSS
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck_divergence(where, loss, reduction):
    student, teacher = pair(3, 5, dtype=F64, device=where.device)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=F64, device=where.device)
    options = {"temperature": 1.7, "weight": weight, "reduction": reduction, "backend": where.backend}
    assert torch.autograd.gradcheck(lambda z: kd.divergence(z, teacher, loss, **options), student)


@EVERY_LOSS
def test_gradcheck_distillation(where, loss):
    student, teacher = pair(3, 5, dtype=F64, device=where.device)
    labels = torch.tensor([4, -100, 0], device=where.device)
    alpha = torch.tensor([0.1, 0.5, 0.8], dtype=F64, device=where.device)
    options = {"alpha": alpha, "temperature": 1.7, "vocab_size": 5, "backend": where.backend}
    assert torch.autograd.gradcheck(lambda z: kd.distillation(z, teacher, labels, loss, **options), student)


@pytest.mark.parametrize("function", [kd.softmax, kd.log_softmax])
def test_gradcheck_softmax(where, function):
    z, _ = pair(3, 5, dtype=F64, device=where.device)
    assert torch.autograd.gradcheck(lambda z: function(z, temperature=1.7, backend=where.backend), z)


@DTYPES
@pytest.mark.parametrize("factor", [1.0, -2.5, 0.0, 1e-3], ids=str)
def test_upstream_is_multiplied(where, dtype, factor):
    student, teacher = pair(5, 100, dtype=dtype, device=where.device)
    _, unit = value_and_gradient(lambda z: kd.divergence(z, teacher, backend=where.backend), student)
    _, gradient = value_and_gradient(lambda z: factor * kd.divergence(z, teacher, backend=where.backend), student)
    same(gradient, factor * unit.double(), dtype)
    loss = kd.divergence(student, teacher, backend=where.backend)
    loss.backward(torch.tensor(factor, device=where.device, dtype=loss.dtype))
    same(student.grad, factor * unit.double(), dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["random", "stride 0", "strided", "with zeros", "transposed"])
def test_upstream_per_row(where, dtype, kind):
    student, teacher = pair(4, 3, 100, dtype=dtype, device=where.device)
    value_dtype = F64 if dtype == F64 else F32
    random = logits(4, 3, seed=7, dtype=value_dtype, device=where.device)
    upstream = {
        "random": random,
        "stride 0": torch.tensor(-1.5, dtype=value_dtype, device=where.device).expand(4, 3),
        "strided": random.repeat_interleave(2, -1)[:, ::2],
        "with zeros": random * (random > 0),
        "transposed": random.t().contiguous().t(),
    }[kind]
    options = {"reduction": "none", "temperature": 2.0, "backend": where.backend}
    _, unit = value_and_gradient(lambda z: kd.divergence(z, teacher, **options), student)
    (gradient,) = torch.autograd.grad(kd.divergence(student, teacher, **options), student, upstream)
    same(gradient, unit.double() * upstream[..., None].double(), dtype)


@DTYPES
def test_a_stride_0_upstream_of_ones(where, dtype):
    """loss.sum() of per-row values, and of a scalar expanded by the user."""
    student, teacher = pair(5, 100, dtype=dtype, device=where.device)
    options = {"reduction": "none", "backend": where.backend}
    _, summed = value_and_gradient(lambda z: kd.divergence(z, teacher, **options).sum(), student)
    _, expanded = value_and_gradient(
        lambda z: kd.divergence(z, teacher, backend=where.backend).expand(5).sum(), student
    )
    _, unit = value_and_gradient(lambda z: kd.divergence(z, teacher, reduction="sum", backend=where.backend), student)
    same(summed, unit, dtype)
    same(expanded, unit, dtype)


@DTYPES
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_two_walks_of_one_graph_give_the_same(where, dtype, factor, reduction):
    student, teacher = pair(5, 100, dtype=dtype, device=where.device)
    loss = (factor * kd.divergence(student, teacher, reduction=reduction, backend=where.backend)).sum()
    first, second, third = (torch.autograd.grad(loss, student, retain_graph=again)[0] for again in (True, True, False))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    with pytest.raises(RuntimeError, match="second time|freed"):
        torch.autograd.grad(loss, student)


@DTYPES
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_gradients_accumulate(where, dtype, factor):
    student, teacher = pair(5, 100, dtype=dtype, device=where.device)
    for _ in range(3):
        (factor * kd.divergence(student, teacher, backend=where.backend)).backward()
    _, one = value_and_gradient(lambda z: factor * kd.divergence(z, teacher, backend=where.backend), student)
    same(student.grad, 3 * one.double(), dtype)


@DTYPES
@pytest.mark.parametrize("meddle", [lambda g: g.zero_(), lambda g: g.mul_(100.0), lambda g: g.fill_(torch.nan)])
def test_grad_belongs_to_the_user(where, dtype, meddle):
    """z.grad may be written between two walks of a kept graph: nothing that is still needed may live in it."""
    student, teacher = pair(5, 100, dtype=dtype, device=where.device)
    loss = kd.divergence(student, teacher, backend=where.backend)
    (wanted,) = torch.autograd.grad(loss, student, retain_graph=True)
    wanted = wanted.clone()
    loss.backward(retain_graph=True)
    meddle(student.grad)
    student.grad = None
    loss.backward(retain_graph=True)
    assert torch.equal(student.grad, wanted)
    meddle(student.grad)
    (again,) = torch.autograd.grad(loss, student)
    assert torch.equal(again, wanted)


def test_two_losses_share_one_student(where):
    student, teacher = pair(5, 100, dtype=F64, device=where.device)
    forward, reverse = (
        lambda z, loss=loss: kd.divergence(z, teacher, loss, backend=where.backend)
        for loss in (kd.ForwardKL(), kd.ReverseKL())
    )
    (0.3 * forward(student) + 0.7 * reverse(student)).backward()
    parts = [value_and_gradient(f, student)[1] for f in (forward, reverse)]
    same(student.grad, 0.3 * parts[0] + 0.7 * parts[1], F64)


def test_part_of_the_rows_used(where):
    """Only some of the per-row values enter what is differentiated."""
    student, teacher = pair(5, 100, dtype=F64, device=where.device)
    _, unit = value_and_gradient(lambda z: kd.divergence(z, teacher, reduction="none", backend=where.backend), student)
    kd.divergence(student, teacher, reduction="none", backend=where.backend)[2:4].sum().backward()
    unit[[0, 1, 4]] = 0.0
    same(student.grad, unit, F64)


@pytest.mark.parametrize("op", ["divergence", "distillation", "softmax", "log_softmax"])
def test_second_derivative_raises(kernel, op):
    """Never a wrong number: neither for grad of grad nor for a penalty that is added to the loss."""
    student, teacher = pair(3, 7, device=kernel.device)
    labels = torch.tensor([0, 1, 2], device=kernel.device)
    arguments = {"divergence": (teacher,), "distillation": (teacher, labels)}.get(op, ())
    message = "(?i)second|double|twice|once_differentiable"

    def first():
        out = getattr(kd, op)(student, *arguments, backend=kernel.backend)
        loss = out[:, :2].sum() if out.dim() else out
        return loss, torch.autograd.grad(loss, student, create_graph=True)[0]

    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(first()[1].pow(2).sum(), student)
    with pytest.raises(RuntimeError, match=message):
        loss, gradient = first()
        (loss + gradient.pow(2).sum()).backward()


def test_second_derivative_of_the_reference_is_right_where_it_exists():
    student, teacher = pair(3, 5, dtype=F64)
    assert torch.autograd.gradgradcheck(lambda z: kd.divergence(z, teacher, backend="reference"), student)


def test_create_graph_alone_is_harmless(where):
    """Meta-learning wrappers pass create_graph=True and never use it: the first derivative is still right."""
    student, teacher = pair(3, 7, dtype=F64, device=where.device)
    loss = kd.divergence(student, teacher, backend=where.backend)
    (plain,) = torch.autograd.grad(loss, student, retain_graph=True)
    (graphed,) = torch.autograd.grad(loss, student, create_graph=True)
    assert torch.equal(plain, graphed.detach())


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detached"])
def test_without_grad(where, how):
    student, teacher = pair(5, 100, device=where.device)
    wanted = kd.divergence(student, teacher, backend=where.backend).detach()
    if how == "detached":
        got = kd.divergence(student.detach(), teacher, backend=where.backend)
    else:
        with getattr(torch, how)():
            got = kd.divergence(student, teacher, backend=where.backend)
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0.0)


def test_teacher_gets_no_gradient(where):
    student, teacher = pair(5, 100, device=where.device)
    loss = kd.divergence(student, teacher, backend=where.backend)
    loss.backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"teacher must not require grad .*teacher\.detach\(\)"):
        kd.divergence(student, teacher.requires_grad_(), backend=where.backend)


@pytest.mark.parametrize("shape", [(6, 11), (2, 3, 11), (11,)], ids=str)
@pytest.mark.parametrize("op", ["divergence", "trilateral"])
def test_values_may_be_modified_in_place(where, shape, op):
    """As those of PyTorch's own losses may: `loss *= weight`, `loss[i] = 0`."""
    student, teacher = pair(*shape, device=where.device)
    labels = torch.ones(shape[:-1], dtype=torch.int64, device=where.device)

    def call():
        if op == "trilateral":
            return kd.trilateral_distances(student, teacher, labels, backend=where.backend)
        return kd.divergence(student, teacher, reduction="none", backend=where.backend)

    (expected,) = torch.autograd.grad((2 * call()).sum(), student)
    values = call()
    values *= 2
    (found,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(found, expected)
