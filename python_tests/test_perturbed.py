"""The perturbed series: what the paper says of it, and what follows from its formula."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of, on, pair, per_class, value_and_gradient

import kdkernels as kd

SHAPES = pytest.mark.parametrize("shape", [(3,), (100, 3)], ids=["shared", "per class"])


def coefficients(*shape, dtype=F64, seed=3):
    """Convex ones, between 0 and 10."""
    return (10 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)).to(dtype)


def run(where, eps, student, teacher, temperature=2.0, **options):
    """(values, gradient) on the CPU in float64, one value per row; eps are coefficients, or a loss."""
    loss = eps if isinstance(eps, kd.Loss) else kd.Perturbed(eps.to(where.device))
    options = {"temperature": temperature, "reduction": "none", "backend": where.backend} | options
    got = value_and_gradient(
        lambda z: kd.divergence(z, teacher.to(where.device), loss, **options), student.to(where.device)
    )
    return tuple(x.cpu().double() for x in got)


def close(got, wanted, rtol=1e-12, atol=1e-13):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture
def batch():
    """float64, so that what is compared is the definition and not its rounding; test_numerics.py has the rest."""
    return logits(5, 100, dtype=F64), logits(5, 100, dtype=F64, seed=1)


@SHAPES
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
def test_zero_is_forward_kl(where, shape, dtype):
    student, teacher = logits(5, 100, dtype=dtype), logits(5, 100, dtype=dtype, seed=1)
    wanted = run(where, kd.ForwardKL(), student, teacher)
    rtol = {F64: 1e-13, F32: 2e-6, BF16: 2**-7, F16: 2**-10}[dtype]
    close(run(where, torch.zeros(shape), student, teacher), wanted, rtol, 1e-15 if dtype == F64 else 1e-7)


@SHAPES
def test_one_hot_teacher(where, shape, batch):
    """L = -log s_y + sum_m eps_{y,m} (1 - s_y)^m, times T^2."""
    student, label, eps = batch[0], torch.tensor([0, 99, 50, 3, 3]), coefficients(*shape)
    teacher = torch.full((5, 100), -torch.inf, dtype=F64).scatter(1, label[:, None], 1.0)

    def formula(z):
        s = (z / 2).softmax(-1).gather(1, label[:, None])
        own = eps[label] if eps.dim() == 2 else eps
        return 4 * (-s.log()[:, 0] + (own * (1 - s) ** torch.arange(1, 4)).sum(-1))

    close(run(where, eps, student, teacher), value_and_gradient(formula, student))


@SHAPES
def test_linear_in_the_coefficients(where, shape, batch):
    one, other = coefficients(*shape), coefficients(*shape, seed=4)
    kl, first, second = (run(where, eps, *batch) for eps in (torch.zeros(shape), one, other))
    wanted = [k + 0.3 * (a - k) + 0.6 * (b - k) for k, a, b in zip(kl, first, second, strict=True)]
    close(run(where, 0.3 * one + 0.6 * other, *batch), wanted)


def test_classes_may_be_permuted_with_their_coefficients(where, batch):
    eps, order = coefficients(100, 5), torch.randperm(100, generator=torch.Generator().manual_seed(0))
    values, gradient = run(where, eps, *batch)
    permuted = run(where, eps[order], batch[0][:, order], batch[1][:, order])
    close(permuted, (values, gradient[:, order]))
    assert not torch.allclose(run(where, eps, batch[0][:, order], batch[1][:, order])[0], values, rtol=1e-4)


@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
@pytest.mark.parametrize("orders", range(1, 9))
def test_equal_rows_are_shared_coefficients(where, dtype, orders):
    student, teacher = logits(5, 100, dtype=dtype), logits(5, 100, dtype=dtype, seed=1)
    eps = coefficients(orders)
    shared, repeated = (run(where, x, student, teacher) for x in (eps, eps.repeat(100, 1)))
    close(repeated, shared, *((1e-13, 1e-15) if dtype == F64 else (2e-6, 1e-6)))


@pytest.mark.parametrize("orders", range(1, 9))
def test_orders_that_are_zero_do_not_count(where, batch, orders):
    eps = coefficients(orders)
    padded = torch.cat([eps, torch.zeros(8 - orders, dtype=F64)])
    close(run(where, padded, *batch), run(where, eps, *batch))


def test_each_class_and_order_has_its_own_coefficient(where, batch):
    """One that is not zero, of the first class, the last and others: p_c eps (1 - q_c)^m and no other class's."""
    q, p = ((x / 2).softmax(-1) for x in batch)
    kl, _ = run(where, kd.ForwardKL(), *batch)
    for column in (0, 1, 15, 16, 63, 98, 99):
        for m in (1, 2, 5):
            eps = torch.zeros(100, 5, dtype=F64)
            eps[column, m - 1] = 3.0
            values, _ = run(where, eps, *batch)
            torch.testing.assert_close(
                values - kl, 4 * 3.0 * p[:, column] * (1 - q[:, column]) ** m, rtol=1e-9, atol=1e-13
            )


def proxy(teacher, eps):
    """The minimiser of L(t, .) for M = 1: p_c = t_c / (lam - eps t_c), lam by bisection so that they sum to 1."""
    t = teacher.softmax(-1)
    low, high = (
        (eps * t).amax(-1, keepdim=True).clamp(min=0.0),
        (t * (1 + eps)).sum(-1, keepdim=True) + eps * t.shape[-1],
    )
    for _ in range(200):
        middle = (low + high) / 2
        above = (t / (middle - eps * t)).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return t / (high - eps * t)


def test_the_minimum_is_the_proxy_teacher(where, batch):
    """Equation 17 for M = 1: there the gradient vanishes and every other student loses more; it is not the teacher."""
    teacher, eps = batch[1], 5.0
    best = proxy(teacher, eps).log()
    loss = kd.Perturbed(torch.tensor([eps], dtype=F64, device=where.device))
    least, gradient = run(where, loss, best, teacher, 1.0)
    assert float(gradient.abs().max()) < 1e-13
    for seed in range(5):
        assert bool((run(where, loss, best + 0.1 * logits(5, 100, seed=seed), teacher, 1.0)[0] > least).all())
    assert float(run(where, loss, teacher, teacher, 1.0)[1].abs().max()) > 1e-2


def test_label_smoothing_is_its_limit(where):
    """t' = (1 - d) t + d / C is t_c eps_{c,m} = (d / m) (1 / C - t_c) for all m: what the first M leave out shrinks."""
    student, teacher, d = logits(1, 4, dtype=F64, spread=0.5), logits(1, 4, dtype=F64, seed=1, spread=0.5), 0.1
    t, log_s = teacher.softmax(-1), student.log_softmax(-1)
    smooth = (1 - d) * t + d / 4
    limit = -(smooth * log_s).sum(-1) + (t * t.log()).sum(-1), log_s.exp() - smooth
    per_order = (((0.25 - t) / t).T * d / torch.arange(1, 9)).squeeze()
    before = torch.inf, torch.inf
    for orders in range(1, 9):
        got = run(where, per_order[:, :orders], student, teacher, 1.0)
        gaps = [float((a - b).norm()) for a, b in zip(got, limit, strict=True)]
        assert gaps[0] < before[0]
        assert gaps[1] < before[1]
        before = gaps
        rest = -log_s - sum((1 - log_s.exp()) ** m / m for m in range(1, orders + 1))
        torch.testing.assert_close(got[0] + (d * (0.25 - t) * rest).sum(-1), limit[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
def test_gradient_rows_sum_to_zero(where, dtype):
    student, teacher = logits(5, 1271, dtype=dtype), logits(5, 1271, dtype=dtype, seed=1)
    _, gradient = run(where, on(where.device, per_class(1271, orders=8)), student, teacher)
    mass = gradient.abs().sum(-1)
    assert bool((gradient.sum(-1).abs() <= (1e-14 if dtype == F64 else 3e-6) * mass).all())


def test_gradcheck_per_class(where):
    student, teacher = pair(3, 5, dtype=F64, device=where.device)
    labels, loss = torch.tensor([4, -100, 0], device=where.device), on(where.device, per_class(5, 8, F64))
    options = {"temperature": 1.7, "backend": where.backend}
    assert torch.autograd.gradcheck(lambda z: kd.divergence(z, teacher, loss, **options), student)
    assert torch.autograd.gradcheck(lambda z: kd.distillation(z, teacher, labels, loss, **options), student)
