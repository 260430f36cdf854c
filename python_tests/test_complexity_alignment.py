"""Kernel alignment and the similarity of two kernels against dense definitions; residuals against theirs."""

import pytest
import torch
import torch.nn.functional as F
from cases import F32, F64, logits
from complexity_grams import spd, vectors
from complexity_models import allocations
from conftest import DEVICES

from kdkernels.methods.complexity import kernel_alignment, ntk_similarity, residual

EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES)
TOLERANCE = {F64: {"rtol": 1e-12, "atol": 1e-14}, F32: {"rtol": 1e-5, "atol": 1e-6}}


def cosine(one, other):
    """Of two matrices, dense, in float64."""
    one, other = one.double(), other.double()
    return (one * other).sum() / (one.norm() * other.norm())


@EVERY_DEVICE
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("shape", [(12,), (4, 3), (12, 1), (1, 12), (5, 6, 2), (2, 3, 12, 1)])
def test_alignment_is_the_cosine_with_the_targets_outer_product(device, dtype, shape):
    gram, targets = spd(12, dtype=dtype, device=device), vectors(*shape, dtype=dtype, device=device)
    got = kernel_alignment(gram, targets)
    assert got.shape == shape[:-2] and got.device == gram.device and bool((got.abs() <= 1).all())
    wanted = torch.stack([cosine(gram, torch.outer(y, y)) for y in targets.double().reshape(-1, 12)])
    torch.testing.assert_close(got.double(), wanted.reshape(got.shape), **TOLERANCE[dtype])


def test_alignment_where_it_is_known():
    for seed in range(20):
        y = vectors(9, seed=seed)
        own = kernel_alignment(torch.outer(y, y), y)
        assert float(own) == pytest.approx(1.0, abs=1e-13) and float(own) <= 1.0
        opposite = kernel_alignment(-torch.outer(y, y), y)
        assert float(opposite) == pytest.approx(-1.0, abs=1e-13) and float(opposite) >= -1.0
        assert float(kernel_alignment(torch.eye(9, dtype=F64), y)) == pytest.approx(1 / 3, rel=1e-13)
    gram, y = torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), torch.tensor([0.0, 2.0], dtype=F64)
    assert float(kernel_alignment(gram, y)) == 0.0


def test_alignment_does_not_depend_on_either_scale():
    gram, y = spd(12), vectors(12)
    wanted = pytest.approx(float(kernel_alignment(gram, y)), rel=1e-12)
    for k, scaled in ((1e-9 * gram, y), (1e15 * gram, -3 * y), (gram, 1e9 * y)):
        assert float(kernel_alignment(k, scaled)) == wanted


@pytest.mark.usual_memory
def test_alignment_never_forms_the_outer_products():
    size, sets = 200, 50
    gram, targets = spd(size), vectors(sets, size, 1)
    measure = lambda: torch.einsum("ki,kj->kij", targets[..., 0], targets[..., 0])  # noqa: E731
    assert allocations(measure)[1] >= sets * gram.nbytes
    assert allocations(lambda: kernel_alignment(gram, targets))[0] <= 8 * gram.nbytes


@EVERY_DEVICE
@pytest.mark.parametrize("dtype", [F64, F32])
def test_similarity_is_the_cosine_of_two_kernels(device, dtype):
    one, other = (spd(12, seed=seed, dtype=dtype, device=device) for seed in (1, 2))
    got = ntk_similarity(one, other)
    assert got.shape == () and got.device == one.device
    torch.testing.assert_close(got.double(), cosine(one, other), **TOLERANCE[dtype])
    assert float(ntk_similarity(other, one)) == pytest.approx(float(got), rel=1e-6)
    assert float(ntk_similarity(one, 5 * one)) == pytest.approx(1.0, abs=1e-6)
    assert float(ntk_similarity(one, -one)) == pytest.approx(-1.0, abs=1e-6)


def test_similarity_of_kernels_without_overlap():
    one, other = (torch.diag(torch.tensor(each, dtype=F64)) for each in ([1.0, 0.0], [0.0, 3.0]))
    assert float(ntk_similarity(one, other)) == 0.0


@EVERY_DEVICE
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_residual_of_a_teacher(device, dtype, temperature):
    student, teacher = (logits(6, 5, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    got = residual(student, teacher, temperature=temperature)
    wanted = (teacher.double() / temperature).softmax(-1) - (student.double() / temperature).softmax(-1)
    torch.testing.assert_close(got.double(), wanted, **TOLERANCE[dtype])
    named = residual(student, teacher, space="probabilities", temperature=temperature)
    assert torch.equal(got, named) and got.shape == (6, 5)
    assert torch.equal(residual(student, student, temperature=temperature), torch.zeros_like(got))


@pytest.mark.parametrize("dtype", [F64, F32])
def test_residual_of_logits(dtype):
    student, teacher = (logits(6, 5, dtype=dtype, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(residual(student, teacher, space="logits"), teacher - student, rtol=0, atol=0)


@pytest.mark.parametrize("integer", [torch.int64, torch.int32])
def test_residual_of_labels(integer):
    student, labels = logits(6, 5, dtype=F64), torch.tensor([0, 4, 2, 2, 1, 3])
    wanted = F.one_hot(labels, 5) - student.softmax(-1)
    torch.testing.assert_close(residual(student, labels.to(integer)), wanted, rtol=1e-13, atol=1e-15)


def test_residuals_are_detached():
    student, teacher = logits(6, 5).requires_grad_(), logits(6, 5, seed=1)
    for targets, space in ((teacher, "probabilities"), (teacher, "logits"), (torch.arange(6) % 5, "probabilities")):
        got = residual(student * 1, targets, space=space)
        assert not got.requires_grad and got.grad_fn is None
    assert student.grad is None
