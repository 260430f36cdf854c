"""The reference where plain compositions of PyTorch fail: logits at the end of their range, distances that are 0."""

import math

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, value_and_gradient
from torch.func import grad, hessian, jacrev, jvp, vmap

import kdkernels as kd

FUNCTIONS = pytest.mark.parametrize("function", [kd.softmax, kd.log_softmax])
EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
TEMPERATURES = pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 3.0])


def largest(shape: tuple[int, ...], dtype: torch.dtype, sign: float) -> torch.Tensor:
    """Logits within a few units in the last place of the largest number; the differences are multiples of 2 ulps."""
    top = torch.finfo(dtype).max
    steps = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))
    return (sign * top * (1.0 - 2 * steps.double() * torch.finfo(dtype).eps)).to(dtype)


@FUNCTIONS
@DTYPES
@TEMPERATURES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_row_of_the_largest_logits_is_uniform(function, dtype, temperature, sign):
    z = torch.full((2, 4), sign * torch.finfo(dtype).max, dtype=dtype)
    got, gradient = value_and_gradient(lambda x: function(x, temperature=temperature, backend="reference"), z)
    torch.testing.assert_close(got, function(torch.zeros_like(z)))
    torch.testing.assert_close(gradient, torch.zeros_like(z))


@FUNCTIONS
@pytest.mark.parametrize("dtype", [F32, BF16], ids=name_of)
@TEMPERATURES
def test_logits_of_the_whole_range(function, dtype, temperature):
    """float64 holds what float32 cannot; logarithms beyond float32 are -inf there, as they round."""
    top = torch.finfo(dtype).max
    z = torch.tensor([[top, -top, 0.0], [-top, -top / 2, -top], [top, top, 1.0]], dtype=dtype)
    got = function(z, temperature=temperature, backend="reference")
    torch.testing.assert_close(got, function(z.double(), temperature=temperature, backend="reference").to(dtype))


@EVERY_LOSS
@DTYPES
@pytest.mark.parametrize("below", [0, 10])
def test_scaled_logits_at_a_scaled_temperature_are_the_same_rows(loss, dtype, below):
    """z / T is unchanged where both are multiplied by a power of two, up to the largest that is allowed."""
    student, teacher = (logits(3, 50, dtype=dtype, seed=seed) for seed in range(2))
    room = math.log2(torch.finfo(dtype).max / float(max(student.abs().max(), teacher.abs().max())))
    power = 2.0 ** (min(math.floor(room), 123) - below)
    options = {"tau_squared": False, "reduction": "none", "backend": "reference"}
    value, gradient = value_and_gradient(
        lambda z: kd.divergence(z, teacher.double(), loss, temperature=0.5, **options), student.double()
    )
    got, slope = value_and_gradient(
        lambda z: kd.divergence(z, teacher * power, loss, temperature=0.5 * power, **options), student * power
    )
    torch.testing.assert_close(got.double(), value, rtol=2e-6, atol=1e-6)
    tolerance = {"rtol": max(torch.finfo(dtype).eps, 2e-5), "atol": 2e-6 + float(torch.finfo(dtype).tiny) * power}
    torch.testing.assert_close(slope.double() * power, gradient, **tolerance)


@EVERY_LOSS
@DTYPES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_divergences_of_the_largest_logits(loss, dtype, sign):
    """One step of the dtype is far more than T: both rows put all their mass on their largest logits."""
    student, teacher = largest((3, 20), dtype, sign), largest((3, 20), dtype, sign).roll(1, 0)
    teacher[:, 0] = student[:, 0] = torch.finfo(dtype).max * sign  # a class that both know
    labels = torch.zeros(3, dtype=torch.int64)
    for temperature in (0.5, 2.0):
        q, p = ((z == z.amax(-1, keepdim=True)).to(F64) for z in (student, teacher))
        q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
        expected = loss.definition(q.log(), p.log())
        got = kd.divergence(
            student, teacher, loss, temperature=temperature, tau_squared=False, reduction="none", backend="reference"
        )
        finite = expected.isfinite()
        torch.testing.assert_close(got.double()[finite], expected[finite], rtol=1e-6, atol=1e-6)
        mixed = kd.distillation(student, teacher, labels, loss, alpha=0.0, backend="reference", reduction="none")
        assert not mixed.isnan().any()


@FUNCTIONS
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_every_derivative_of_a_softmax(function, temperature):
    z, direction = logits(3, 6, dtype=F64), logits(3, 6, dtype=F64, seed=1)
    mine = lambda x: function(x, temperature=temperature, backend="reference")  # noqa: E731
    plain = lambda x: getattr(torch, function.__name__)(x / temperature, -1)  # noqa: E731
    for both in (jacrev, hessian):
        torch.testing.assert_close(both(mine)(z), both(plain)(z))
    torch.testing.assert_close(jvp(mine, (z,), (direction,)), jvp(plain, (z,), (direction,)))
    torch.testing.assert_close(vmap(jacrev(mine))(z), vmap(jacrev(plain))(z))
    leaf = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(mine, leaf, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(mine, leaf)


@EVERY_LOSS
def test_every_derivative_of_a_divergence(loss):
    student, teacher = (logits(2, 5, dtype=F64, seed=seed) for seed in range(2))
    mine = lambda z: kd.divergence(z, teacher, loss, temperature=0.3, backend="reference")  # noqa: E731

    def plain(z):
        log_q, log_p = ((x / 0.3).log_softmax(-1) for x in (z, teacher))
        return 0.3**2 * loss.definition(log_q, log_p).mean()

    torch.testing.assert_close(grad(mine)(student), grad(plain)(student))
    torch.testing.assert_close(hessian(mine)(student), hessian(plain)(student))


def where_it_is_zero(squared=False):
    """Student logits (3, 5), and their distance |S - P| where the teacher is the same in the first two rows."""
    z = logits(3, 5, dtype=F64)
    teacher, labels = z.clone(), torch.arange(3)
    teacher[2] += logits(5, dtype=F64, seed=3)
    labels[1] = -100
    return z, lambda x: kd.trilateral_distances(x, teacher, labels, None, squared, backend="reference")


def test_both_derivatives_of_a_distance_that_is_zero_are_zero():
    z, call = where_it_is_zero()
    leaf = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(leaf)[:, 2].sum(), leaf, create_graph=True)
    assert torch.equal(first[:2], torch.zeros(2, 5, dtype=F64)) and bool((first[2] != 0).any())
    (second,) = torch.autograd.grad((first * logits(3, 5, dtype=F64, seed=4)).sum(), leaf)
    assert torch.equal(second[:2], torch.zeros(2, 5, dtype=F64)) and bool(second[2].isfinite().all())
    assert torch.autograd.gradgradcheck(lambda x: call(torch.cat([z[:2], x]))[:, 2], z[2:].clone().requires_grad_())


@pytest.mark.parametrize("squared", [False, True])
def test_hessians_of_the_distances_are_those_of_the_norms(squared):
    z, call = where_it_is_zero(squared)
    probs = z.softmax(-1)

    def plain(x):
        s = x.softmax(-1)
        label = torch.nn.functional.one_hot(torch.arange(3), 5)
        edges = (s - label, probs - label, s - probs)
        return torch.stack([e.square().sum(-1) if squared else torch.linalg.vector_norm(e, dim=-1) for e in edges], -1)

    got = hessian(lambda x: call(x)[0].sum())(z)
    torch.testing.assert_close(got, hessian(lambda x: plain(x)[0].sum())(z))
    ignored = lambda x: call(x)[1].sum()  # noqa: E731
    assert torch.equal(hessian(ignored)(z), torch.zeros(3, 5, 3, 5, dtype=F64))
    # Backward over backward, of which PyTorch's own norm makes NaN where it is 0.
    torch.testing.assert_close(jacrev(jacrev(lambda x: call(x)[0].sum()))(z), got)
