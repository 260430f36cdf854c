"""The jitter that a Gram matrix needs, what is said about it, and the estimate of the condition number."""

from fractions import Fraction

import numpy
import pytest
import torch
from cases import F32, F64
from complexity_grams import definition, jittered, spd, vectors

from kdkernels.methods.complexity import supervision_complexity

EPS = {F64: 2.0**-52, F32: 2.0**-23}


def near_singular(deficit, dtype=F64):
    """Eigenvalues 2 + deficit and -deficit; the mean of the diagonal is 1."""
    off = 1.0 + deficit
    return torch.tensor([[1.0, off], [off, 1.0]], dtype=dtype)


def singular(kind, dtype=F64):
    """Cholesky meets a pivot that is exactly zero: all is done in small integers."""
    if kind == "ones":
        return torch.ones(6, 6, dtype=dtype)
    lower = torch.tril(torch.arange(36, dtype=dtype).reshape(6, 6) % 5 - 2, -1) + torch.eye(6, dtype=dtype)
    lower[3, 3] = lower[5, 5] = 0
    if kind == "duplicates":
        lower[5] = lower[1]
    return lower @ lower.T


@pytest.mark.parametrize("dtype", [F64, F32])
def test_auto_starts_at_the_rounding_of_the_dtype(dtype):
    result = supervision_complexity(spd(20, dtype=dtype), vectors(20))
    assert EPS[dtype] / 2 <= result.jitter <= 4 * 20 * EPS[dtype]
    wanted = definition(spd(20, dtype=dtype), vectors(20), 20, jitter=result.jitter)
    assert float(result.value) == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize("deficit", [1e-12, 1e-8, 1e-4])
def test_auto_goes_as_far_as_it_must_and_not_much_farther(deficit):
    """Only a jitter above the deficit makes this kernel positive; a hundredfold is more than one step of a series."""
    result = supervision_complexity(near_singular(deficit), vectors(2))
    assert deficit < result.jitter <= 100 * deficit


def test_auto_is_one_series_for_all():
    """A kernel that needs no jitter, one that needs a little, one that needs more: powers of one ratio."""
    steps = [supervision_complexity(near_singular(d), vectors(2)).jitter for d in (1e-11, 1e-9, 1e-7, 1e-5, 1e-3)]
    assert all(one < other for one, other in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("kind", ["ones", "zero pivots", "duplicates"])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_singular_grams(kind, dtype):
    gram, targets = singular(kind, dtype), vectors(6, dtype=dtype)
    assert float(torch.linalg.eigvalsh(gram.double())[0]) < 1e-12
    result = supervision_complexity(gram, targets)
    assert EPS[dtype] / 2 <= result.jitter <= 1e3 * EPS[dtype] and result.value.isfinite()
    for jitter in (0, 0.0):
        with pytest.raises(RuntimeError, match="jitter="):
            supervision_complexity(gram, targets, jitter=jitter)
    given = supervision_complexity(gram, targets, jitter=1e-4)
    assert given.jitter == 1e-4
    assert float(given.value) == pytest.approx(definition(gram, targets, 6, jitter=1e-4), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_a_singular_gram_is_so_up_to_rounding(rank):
    """Rounding leaves pivots of either sign where exact arithmetic has zero: never an answer made of them."""
    for seed in range(20):
        features = vectors(12, rank, seed=seed)
        gram = features @ features.T
        with pytest.raises(RuntimeError, match="jitter="):
            supervision_complexity((gram + gram.T) / 2, vectors(12), jitter=0)


def test_a_number_that_is_too_small_is_not_replaced():
    gram, targets = near_singular(1e-6), vectors(2)
    with pytest.raises(RuntimeError, match="jitter="):
        supervision_complexity(gram, targets, jitter=1e-8)
    result = supervision_complexity(gram, targets, jitter=2e-6)
    assert result.jitter == 2e-6
    assert float(result.value) == pytest.approx(definition(gram, targets, 2, jitter=2e-6), rel=1e-7)


def test_a_number_is_relative_to_the_mean_of_the_diagonal():
    gram = torch.diag(torch.tensor([2.0, 6.0], dtype=F64))
    y = torch.tensor([1.0, 0.0], dtype=F64)
    result = supervision_complexity(gram, y, adjusted=False, jitter=0.5)
    assert float(result.value) == pytest.approx((2.0 + 0.5 * 4.0) ** -0.5, rel=1e-14)


@pytest.mark.parametrize(
    "number", [Fraction(1, 2), numpy.float32(0.5), numpy.float64(0.5)], ids=lambda x: type(x).__name__
)
def test_a_number_of_any_kind(number):
    gram, targets = spd(12), vectors(12)
    got, wanted = (supervision_complexity(gram, targets, jitter=each) for each in (number, 0.5))
    assert got == wanted and type(got.jitter) is float


def test_the_largest_number_leaves_the_identity():
    """K + jitter mean(diag K) I is then that multiple of I, to rounding: ||y|| / sqrt(n)."""
    result = supervision_complexity(spd(12), vectors(12), jitter=1 / EPS[F64])
    assert float(result.value) == pytest.approx(float(vectors(12).norm()) / 12**0.5, rel=1e-13)
    assert result.condition == pytest.approx(1.0, rel=1e-13)


def test_zero_is_exactly_zero():
    gram, y = torch.diag(torch.tensor([4.0, 16.0], dtype=F64)), torch.tensor([2.0, 4.0], dtype=F64)
    result = supervision_complexity(gram, y, adjusted=False, jitter=0)
    assert result.jitter == 0.0 and float(result.value) == pytest.approx(2.0**0.5, rel=1e-15)


@pytest.mark.parametrize("gram", [-torch.eye(3, dtype=F64), torch.diag(torch.tensor([5.0, 5.0, -2.0], dtype=F64))])
def test_a_matrix_that_is_no_kernel_is_refused(gram):
    """Its negative eigenvalues are no rounding; a given number is too small for them, and says so."""
    with pytest.raises((RuntimeError, ValueError), match="gram|jitter="):
        supervision_complexity(gram, vectors(3), jitter=1e-3)


def test_a_negative_trace_has_no_jitter():
    with pytest.raises((RuntimeError, ValueError), match="gram|jitter="):
        supervision_complexity(-torch.eye(3, dtype=F64), vectors(3))


@pytest.mark.parametrize("size", [1, 2, 20, 60])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4, 1e9])
def test_the_condition_within_a_factor_of_two(size, condition):
    for seed in range(4):
        gram = spd(size, condition, seed, scale=1e3)
        got = supervision_complexity(gram, vectors(size), jitter=0).condition
        assert 0.5 <= got / float(torch.linalg.cond(gram)) <= 2.0


def test_the_condition_where_extreme_eigenvalues_are_close_together():
    """Wishart matrices: no gap at either end of the spectrum, on which power iterations converge slowly."""
    for seed in range(8):
        features = vectors(40, 60, seed=seed)
        gram = features @ features.T
        gram = (gram + gram.T) / 2
        got = supervision_complexity(gram, vectors(40), jitter=0).condition
        assert 0.5 <= got / float(torch.linalg.cond(gram)) <= 2.0


def test_the_condition_where_one_eigenvalue_stands_out():
    """As tangent kernels have it: a large one along the constant vector, which must not be orthogonal to the start."""
    for sign in (1.0, -1.0):
        direction = sign ** torch.arange(30, dtype=F64)
        gram = torch.eye(30, dtype=F64) + 100 * torch.outer(direction, direction)
        got = supervision_complexity(gram, vectors(30), jitter=0).condition
        assert 0.5 <= got / 3001 <= 2.0
        small = torch.eye(30, dtype=F64) - (1 - 1e-4) / 30 * torch.outer(direction, direction)
        assert 0.5 <= supervision_complexity(small, vectors(30), jitter=0).condition / 1e4 <= 2.0


@pytest.mark.parametrize("jitter", [1e-6, 1e-2])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_condition_is_that_of_the_jittered_kernel(jitter, dtype):
    gram = singular("duplicates", dtype)
    got = supervision_complexity(gram, vectors(6), jitter=jitter).condition
    assert 0.5 <= got / float(torch.linalg.cond(jittered(gram, jitter))) <= 2.0


def test_the_condition_draws_from_no_generator_of_the_user():
    before = torch.get_rng_state()
    first, second = (supervision_complexity(spd(20), vectors(20)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and first[1:] == second[1:]
