"""What every loss and every divergence is by definition, whatever its formula: no oracle needed."""

import math

import pytest
import torch
from cases import ALL_LOSSES, BF16, DEFAULT_LOSSES, DIVERGENCES, F32, F64, logits, name_of, pair, value_and_gradient

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", ALL_LOSSES, ids=name_of)
EVERY_DIVERGENCE = pytest.mark.parametrize("loss", DIVERGENCES, ids=name_of)
UNBOUNDED = (kd.ForwardKL, kd.ReverseKL, kd.Perturbed)  # infinite where the supports differ


def rows_of(student, teacher, loss, where, **options):
    return kd.divergence(student, teacher, loss, reduction="none", backend=where.backend, **options)


@EVERY_DIVERGENCE
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
@pytest.mark.parametrize("vocab", [1, 7, 1271])
def test_zero_at_equality(where, loss, dtype, vocab):
    student, _ = pair(3, vocab, dtype=dtype, device=where.device)
    teacher = student.detach().clone()
    values, gradient = value_and_gradient(lambda z: rows_of(z, teacher, loss, where, temperature=2.0), student)
    rounding = 1e-15 if dtype == F64 else 2e-7
    assert float(values.abs().max()) <= 4 * rounding
    assert float(gradient.abs().max()) <= 2 * rounding


@EVERY_DIVERGENCE
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 1.0, 30.0])
def test_not_negative_within_the_floor(where, loss, distance):
    teacher = logits(64, 1000, device=where.device)
    student = teacher + distance * logits(64, 1000, device=where.device, seed=3)
    assert float(rows_of(student, teacher, loss, where).min()) >= -1e-6


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
def test_gradient_rows_sum_to_zero(where, loss, dtype):
    student, teacher = pair(8, 1271, dtype=dtype, device=where.device)
    _, gradient = value_and_gradient(lambda z: rows_of(z, teacher, loss, where), student)
    mass = gradient.double().abs().sum(-1)
    assert bool((gradient.double().sum(-1).abs() <= (1e-14 if dtype == F64 else 3e-6) * mass).all())


@EVERY_LOSS
def test_a_constant_per_row_changes_nothing(where, loss):
    """softmax does not know it. Shifts that are powers of two lose no bits of these logits' first 17."""
    student = (logits(3, 100, device=where.device) * 256).round() / 256
    teacher = (logits(3, 100, device=where.device, seed=1) * 256).round() / 256
    shift = torch.tensor([[-64.0], [0.0], [128.0]], device=where.device)
    plain = value_and_gradient(lambda z: rows_of(z, teacher, loss, where), student)
    shifted = value_and_gradient(lambda z: rows_of(z, teacher - 2 * shift, loss, where), student + shift)
    for a, b in zip(plain, shifted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


@EVERY_LOSS
def test_classes_may_be_permuted(where, loss):
    student, teacher = pair(3, 1271, device=where.device)
    order = torch.randperm(1271, generator=torch.Generator().manual_seed(0)).to(where.device)
    values, gradient = value_and_gradient(lambda z: rows_of(z, teacher, loss, where), student)
    permuted = value_and_gradient(lambda z: rows_of(z, teacher[:, order], loss, where), student.detach()[:, order])
    torch.testing.assert_close(permuted[0], values, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(permuted[1], gradient[:, order], rtol=1e-5, atol=1e-7)


@EVERY_LOSS
def test_temperature_is_a_division_of_the_logits(where, loss):
    student, teacher = pair(3, 100, dtype=F64, device=where.device)
    at_four = rows_of(student, teacher, loss, where, temperature=4.0)
    torch.testing.assert_close(at_four, 16.0 * rows_of(student / 4, teacher / 4, loss, where), rtol=1e-13, atol=1e-15)
    untouched = rows_of(student, teacher, loss, where, temperature=4.0, tau_squared=False)
    torch.testing.assert_close(16.0 * untouched, at_four, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("loss", [kd.JensenShannon(beta=0.5), kd.TotalVariation()], ids=name_of)
def test_symmetric(where, loss):
    student, teacher = (x.detach() for x in pair(5, 1271, device=where.device))
    there, back = rows_of(student, teacher, loss, where), rows_of(teacher, student, loss, where)
    torch.testing.assert_close(there, back, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.9])
def test_jensen_shannon_mirrors(where, beta):
    student, teacher = (x.detach() for x in pair(5, 1271, device=where.device))
    there = rows_of(student, teacher, kd.JensenShannon(beta), where)
    torch.testing.assert_close(there, rows_of(teacher, student, kd.JensenShannon(1 - beta), where), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [(kd.ForwardKL(), kd.ReverseKL()), (kd.SkewKL(0.3), kd.SkewReverseKL(0.3))],
    ids=["kl", "skew"],
)
def test_directions_are_each_others_mirror(where, one_way, other_way):
    student, teacher = (x.detach() for x in pair(5, 1271, device=where.device))
    there, back = rows_of(student, teacher, one_way, where), rows_of(teacher, student, other_way, where)
    torch.testing.assert_close(there, back, rtol=2e-6, atol=0.0)
    assert not torch.allclose(there, rows_of(student, teacher, other_way, where), rtol=1e-2)  # the direction matters


@pytest.mark.parametrize(
    ("near", "limit", "factor"),
    [
        (lambda e: kd.JensenShannon(beta=e), kd.ForwardKL(), lambda e: 1 / e),
        (lambda e: kd.JensenShannon(beta=1 - e), kd.ReverseKL(), lambda e: 1 / e),
        (lambda e: kd.SkewKL(alpha=e), kd.ForwardKL(), lambda e: 1.0),
        (lambda e: kd.SkewReverseKL(alpha=e), kd.ReverseKL(), lambda e: 1.0),
    ],
    ids=["beta->0", "beta->1", "skew->forward", "skew->reverse"],
)
def test_limits_of_the_parameter(where, near, limit, factor):
    """The distance to the limit is of first order in the parameter: a tenth of it leaves about a tenth."""
    student, teacher = pair(3, 100, dtype=F64, device=where.device)
    wanted = value_and_gradient(lambda z: rows_of(z, teacher, limit, where), student)

    def distance(epsilon):
        got = value_and_gradient(lambda z: rows_of(z, teacher, near(epsilon), where), student)
        return [float((factor(epsilon) * a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]

    for coarse, fine in zip(distance(1e-6), distance(1e-7), strict=True):
        assert fine < 1e-3
        assert fine < 0.15 * coarse


@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("family", [kd.SkewKL, kd.SkewReverseKL])
def test_skew_fades_towards_one(where, family, alpha):
    student, teacher = (x.detach() for x in pair(3, 100, dtype=F64, device=where.device))
    chi_squared_bound = (1 - alpha) * rows_of(student, teacher, kd.TotalVariation(), where) * 2 / alpha
    assert bool((rows_of(student, teacher, family(alpha), where) <= chi_squared_bound).all())


@pytest.mark.parametrize("loss", [loss for loss in ALL_LOSSES if not isinstance(loss, UNBOUNDED)], ids=name_of)
def test_bounds_are_reached_on_disjoint_supports_and_never_passed(where, loss):
    """p and q on different classes: the largest value there is."""
    parameter = loss.parameter()
    bound = {
        "total_variation": lambda: 1.0,
        "jensen_shannon": lambda: -parameter * math.log(parameter) - (1 - parameter) * math.log1p(-parameter),
    }.get(loss.name, lambda: -math.log(parameter))()
    student = torch.tensor([[60.0, -60.0, -60.0], [200.0, 0.0, -200.0]], device=where.device)
    values = rows_of(student, student.flip(-1), loss, where)
    torch.testing.assert_close(values, torch.full_like(values, bound), rtol=1e-6, atol=0.0)
    spread = (logits(64, 100, device=where.device, seed=seed, spread=20.0) for seed in (0, 1))
    apart = rows_of(*spread, loss, where)
    assert float(apart.max()) <= bound * (1 + 1e-6)


def test_pinsker_and_jensen_shannon_inequalities_tie_the_losses_together(where):
    """TV^2 <= KL / 2 in both directions, and TV^2 / 2 <= JS <= log 2 TV: a factor of two anywhere would break one."""
    student, teacher = (x.detach() for x in pair(200, 3, dtype=F64, device=where.device))
    tv, forward, reverse, js = (
        rows_of(student, teacher, loss, where)
        for loss in (kd.TotalVariation(), kd.ForwardKL(), kd.ReverseKL(), kd.JensenShannon())
    )
    for smaller, larger in [(tv**2, forward / 2), (tv**2, reverse / 2), (tv**2 / 2, js), (js, math.log(2) * tv)]:
        assert bool((smaller <= larger + 1e-15).all())


@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
def test_a_gradient_step_brings_the_student_nearer(where, loss):
    student, teacher = pair(16, 100, device=where.device)
    before, gradient = value_and_gradient(lambda z: rows_of(z, teacher, loss, where), student)
    after = rows_of(student.detach() - 0.05 * gradient, teacher, loss, where)
    assert bool((after < before).all())
