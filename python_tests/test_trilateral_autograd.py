"""Trilateral distances under autograd: any upstream, any number of backward walks, no wrong numbers."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of, pair, value_and_gradient

import kdkernels as kd

DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
SQUARED = pytest.mark.parametrize("squared", [False, True], ids=["lengths", "squares"])
MEANS = pytest.mark.parametrize("means", [False, True], ids=["three", "five"])
# The gradient is made in backward and rounded once, whatever the upstream.
TOLERANCE = {F64: 1e-12, F32: 1e-5, BF16: 1e-2, F16: 2e-3}


def batch(where, *shape, dtype=F32, means=True):
    """Student that wants its gradient, teacher, labels with one row ignored, class mean or None."""
    student, teacher = pair(*shape, dtype=dtype, device=where.device)
    labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(5))
    labels.view(-1)[1] = -100
    table = logits(shape[-1], shape[-1], device=where.device, seed=3).softmax(-1) if means else None
    return student, teacher, labels.to(where.device), table


def same(got, wanted, dtype):
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=TOLERANCE[dtype], atol=1e-14 if dtype == F64 else 1e-7
    )


@SQUARED
@MEANS
def test_gradcheck(where, means, squared):
    student, *rest = batch(where, 3, 5, dtype=F64, means=means)
    assert torch.autograd.gradcheck(
        lambda z: kd.trilateral_distances(z, *rest, squared, vocab_size=5, backend=where.backend), student
    )


def test_gradcheck_of_part_of_the_vocabulary(where):
    student, teacher, labels, _ = batch(where, 3, 5, dtype=F64, means=False)
    labels = labels.clamp(max=3)
    table = torch.eye(4, dtype=F64, device=where.device)
    assert torch.autograd.gradcheck(
        lambda z: kd.trilateral_distances(z, teacher, labels, table, vocab_size=4, backend=where.backend), student
    )


@DTYPES
@MEANS
@pytest.mark.parametrize("kind", ["random", "stride 0", "strided", "transposed", "one column", "zeros"])
def test_upstream(where, dtype, kind, means):
    """It is a sum over the distances of each one's gradient, whatever its strides."""
    student, *rest = batch(where, 4, 3, 100, dtype=dtype, means=means)
    distances = lambda: kd.trilateral_distances(student, *rest, backend=where.backend)  # noqa: E731
    random = logits(*distances().shape, seed=7, dtype=F64 if dtype == F64 else F32, device=where.device)
    upstream = {
        "random": random,
        "stride 0": random[:1, :1, :1].expand_as(random),
        "strided": random.repeat_interleave(2, -1)[..., ::2],
        "transposed": random.transpose(0, 2).contiguous().transpose(0, 2),
        "one column": random * (torch.arange(random.shape[-1], device=where.device) == 2),
        "zeros": torch.zeros_like(random),
    }[kind]
    (gradient,) = torch.autograd.grad(distances(), student, upstream)
    wide = student.detach().double().requires_grad_()
    exact = kd.trilateral_distances(wide, rest[0].double(), *rest[1:], backend="reference")
    (wanted,) = torch.autograd.grad(exact, wide, upstream.double())
    same(gradient, wanted, dtype)
    assert (kind == "zeros") == bool((gradient == 0).all())


def test_a_stride_0_upstream_from_a_sum_and_from_a_scalar(where):
    student, *rest = batch(where, 5, 100, dtype=F64)
    distances = lambda z: kd.trilateral_distances(z, *rest, backend=where.backend)  # noqa: E731
    _, summed = value_and_gradient(distances, student)
    (ones,) = torch.autograd.grad(distances(student), student, torch.ones(5, 5, dtype=F64, device=where.device))
    (mean,) = torch.autograd.grad(distances(student).mean(), student)
    assert torch.equal(summed, ones)
    same(mean, ones / 25, F64)


@DTYPES
@SQUARED
def test_two_walks_of_one_graph_give_the_same(where, dtype, squared):
    student, *rest = batch(where, 5, 100, dtype=dtype)
    total = (3.0 * kd.trilateral_distances(student, *rest, squared, backend=where.backend)).sum()
    first, second, third = (torch.autograd.grad(total, student, retain_graph=again)[0] for again in (True, True, False))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    with pytest.raises(RuntimeError, match="second time|freed"):
        torch.autograd.grad(total, student)


@DTYPES
def test_grad_belongs_to_the_user_and_accumulates(where, dtype):
    student, *rest = batch(where, 5, 100, dtype=dtype)
    total = kd.trilateral_distances(student, *rest, backend=where.backend).sum()
    (one,) = torch.autograd.grad(total, student, retain_graph=True)
    one = one.clone()
    total.backward(retain_graph=True)
    student.grad.fill_(torch.nan)
    student.grad = None
    for _ in range(3):
        total.backward(retain_graph=True)
    same(student.grad, 3 * one.double(), dtype)


@MEANS
def test_second_derivative_raises(kernel, means):
    """Never a wrong number: neither for grad of grad nor for a penalty that is added to the loss."""
    student, *rest = batch(kernel, 3, 7, dtype=F64, means=means)
    message = "(?i)second|double|twice|once_differentiable"

    def first():
        total = kd.trilateral_distances(student, *rest, backend=kernel.backend).sum()
        return total, torch.autograd.grad(total, student, create_graph=True)[0]

    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(first()[1].pow(2).sum(), student)
    with pytest.raises(RuntimeError, match=message):
        total, gradient = first()
        (total + gradient.pow(2).sum()).backward()


@SQUARED
def test_second_derivative_of_the_reference_is_right(squared):
    student, teacher = pair(3, 5, dtype=F64)
    labels, table = torch.tensor([4, 0, 2]), logits(5, 5, dtype=F64, seed=3).softmax(-1)
    assert torch.autograd.gradgradcheck(
        lambda z: kd.trilateral_distances(z, teacher, labels, table, squared, backend="reference"), student
    )


def test_create_graph_alone_is_harmless(where):
    student, *rest = batch(where, 3, 7, dtype=F64)
    total = kd.trilateral_distances(student, *rest, backend=where.backend).sum()
    (plain,) = torch.autograd.grad(total, student, retain_graph=True)
    (graphed,) = torch.autograd.grad(total, student, create_graph=True)
    assert torch.equal(plain, graphed.detach())


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detached"])
def test_without_grad(where, how):
    student, *rest = batch(where, 5, 100)
    wanted = kd.trilateral_distances(student, *rest, backend=where.backend).detach()
    if how == "detached":
        got = kd.trilateral_distances(student.detach(), *rest, backend=where.backend)
    else:
        with getattr(torch, how)():
            got = kd.trilateral_distances(student, *rest, backend=where.backend)
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("which", ["student", "teacher", "labels", "class_mean"])
def test_what_backward_needs_may_not_be_overwritten_in_between(kernel, which):
    """Backward reads all four again: an error, and not the gradient at other logits or labels."""
    student, teacher, labels, table = batch(kernel, 5, 100)
    student = student * 1.0
    distances = kd.trilateral_distances(student, teacher, labels, table, backend=kernel.backend)
    {"student": student, "teacher": teacher, "labels": labels, "class_mean": table}[which].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        distances.sum().backward()


def test_part_of_the_distances_used(where):
    """A controller that looks at some rows and columns only."""
    student, *rest = batch(where, 5, 100, dtype=F64)
    upstream = torch.zeros(5, 5, dtype=F64, device=where.device)
    upstream[2:4, 3] = 2.0
    (wanted,) = torch.autograd.grad(kd.trilateral_distances(student, *rest, backend=where.backend), student, upstream)
    (2.0 * kd.trilateral_distances(student, *rest, backend=where.backend)[2:4, 3]).sum().backward()
    same(student.grad, wanted, F64)
    assert bool((student.grad[[0, 1, 4]] == 0).all())
