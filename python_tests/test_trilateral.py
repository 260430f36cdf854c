"""Trilateral distances: values and gradients of every backend, instruction set, dtype and shape against float64."""

from functools import lru_cache

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from oracle_trilateral import eager, trilateral
from tolerance import arithmetic, check_distances, check_gradient

import kdkernels as kd

SHAPES = [
    (3, 1),  # one class: every distance is 0
    (3, 2),  # binary
    (3, 7),  # below any vector width
    (19, 100),  # a few vectors and a tail, and so for the rows
    (1, 1000),  # one row: no parallelism over rows
    (3, 1271),  # 31 * 41: odd, so that rows are not aligned to anything
]
LARGE = [
    ((289, 1000), True),  # more rows than threads, several of a class
    ((3, 32000), False),  # a row no longer fits a first-level cache or a GPU's registers; no (C, C) of that size
    ((1, 128256), False),  # a row is streamed
]
DTYPES = [
    (F32, F32),
    (BF16, BF16),
    (F16, F16),
    (F64, F64),
    (BF16, F32),  # a teacher's logits cached in full precision
    (F32, BF16),
    (F16, BF16),  # two halves that promote to neither
    (F64, F32),
    (F16, F64),
]
PAIRS = pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
SQUARED = pytest.mark.parametrize("squared", [False, True], ids=["lengths", "squares"])


@lru_cache(maxsize=256)
def inputs(shape, dtypes, means):
    """Student, teacher, labels, random upstream and class mean (its dtype, or None), all on the CPU."""
    rows, vocab = shape
    student, teacher = (logits(rows, vocab, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes))
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(5))
    upstream = logits(rows, 5 if means else 3, dtype=arithmetic(student, teacher), seed=7)
    table = logits(vocab, vocab, seed=3).softmax(-1).to(means) if means else None
    return student, teacher, labels, upstream, table


@lru_cache(maxsize=256)
def answers(shape, dtypes, means, squared, device):
    """(float64, what rounding is measured by, eager PyTorch on the device), shared by all backends."""
    student, teacher, labels, upstream, table = inputs(shape, dtypes, means)
    arguments = (student, teacher, labels, upstream, table, squared)
    return *trilateral(*arguments), eager(*arguments, device)


def check(target, shape, dtypes, means, squared):
    student, teacher, labels, upstream, table = (
        x if x is None else x.to(target.device) for x in inputs(shape, dtypes, means)
    )
    answer, size, peer = answers(shape, dtypes, means, squared, target.device)
    compute = arithmetic(student, teacher)
    leaf = student.detach().requires_grad_()
    got = kd.trilateral_distances(leaf, teacher, labels, table, squared, backend=target.backend)
    (gradient,) = torch.autograd.grad(got, leaf, upstream)
    alone = kd.trilateral_distances(student, teacher, labels, table, squared=squared, backend=target.backend)
    assert got.shape == alone.shape == upstream.shape
    assert gradient.dtype == student.dtype
    for values in (got, alone):
        check_distances(values, answer, peer, size, compute)
    check_gradient(gradient, answer, peer, size, compute)


@PAIRS
@SQUARED
@pytest.mark.parametrize("means", [None, F32], ids=["three", "five"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_shapes(target, shape, means, squared, dtypes):
    check(target, shape, dtypes, means, squared)


@SQUARED
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F64, F64)], ids=lambda pair: name_of(pair[0]))
@pytest.mark.parametrize("means", [BF16, F16, F64], ids=name_of)
def test_dtypes_of_the_class_mean(target, means, dtypes, squared):
    """It may have any, and decides nothing: the result's dtype is that of the logits."""
    check(target, (19, 113), dtypes, means, squared)


@SQUARED
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16)], ids=lambda pair: name_of(pair[0]))
@pytest.mark.parametrize(("shape", "means"), LARGE, ids=str)
def test_large_shapes(target, shape, means, dtypes, squared):
    check(target, shape, dtypes, F32 if means else None, squared)


@pytest.mark.parametrize("which", range(5))
@SQUARED
def test_each_distance_alone(target, which, squared):
    """An upstream of one column, so that an error in one gradient is not lent tolerance by another's."""
    student, teacher, labels, upstream, table = inputs((19, 113), (F32, F32), F32)
    upstream = torch.where(torch.arange(5) == which, upstream, 0.0)
    arguments = (student, teacher, labels, upstream, table, squared)
    (answer, size), peer = trilateral(*arguments), eager(*arguments, target.device)
    leaf = student.to(target.device, copy=True).requires_grad_()
    rest = (x.to(target.device) for x in (teacher, labels, table))
    got = kd.trilateral_distances(leaf, *rest, squared, backend=target.backend)
    (gradient,) = torch.autograd.grad(got, leaf, upstream.to(target.device))
    check_gradient(gradient, answer, peer, size, F32)
    assert bool((gradient == 0).all()) == (which in (1, 4))  # |P - G| and |M - G| do not know the student


@SQUARED
@pytest.mark.parametrize("means", [None, F64], ids=["three", "five"])
def test_the_oracle_is_the_formula_and_its_derivative(means, squared):
    """Written out as in the paper's equations 6-10 with autograd's derivative, in float64."""
    arguments = (*inputs((5, 7), (F64, F64), means), squared)
    (answer, _), plain = trilateral(*arguments), eager(*arguments)
    torch.testing.assert_close(answer.values, plain.values, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(answer.gradient, plain.gradient, rtol=1e-11, atol=1e-14)


def test_values_worked_by_hand(where):
    """S = (1/2, 1/2, 0), P = (1/4, 1/4, 1/2), G = (0, 0, 1), M = (0, 1, 0)."""
    student = torch.tensor([[0.0, 0.0, -torch.inf]], device=where.device)
    teacher = torch.tensor([[0.25, 0.25, 0.5]], device=where.device).log()
    table = torch.tensor([[9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [0.0, 1.0, 0.0]], device=where.device)
    labels = torch.tensor([2], device=where.device)
    wanted = torch.tensor([[1.5, 0.375, 0.375, 0.5, 2.0]])
    for squared in (True, False):
        for means in (None, table):
            got = kd.trilateral_distances(student, teacher, labels, means, squared, backend=where.backend).cpu()
            exact = wanted[:, : got.shape[-1]] if squared else wanted[:, : got.shape[-1]].sqrt()
            torch.testing.assert_close(got, exact, rtol=3e-7, atol=0.0)
