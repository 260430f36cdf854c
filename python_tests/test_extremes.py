"""-inf, NaN, huge logits and low temperatures: where a fused loss usually stops agreeing with the formula."""

import math

import pytest
import torch
from cases import ALL_LOSSES, BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, pair, value_and_gradient
from oracle import divergence, eager
from tolerance import check_gradient, check_values, scale

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
INF = math.inf


def rows(target, student, teacher, loss, temperature=1.0):
    """(values, gradient) on the CPU, one value per row and a gradient for an upstream of ones."""
    teacher = teacher.to(target.device)
    options = {"temperature": temperature, "reduction": "none", "backend": target.backend}
    got = value_and_gradient(lambda z: kd.divergence(z, teacher, loss, **options), student.to(target.device))
    return tuple(x.cpu() for x in got)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
def test_minus_infinity_on_both_sides_is_a_smaller_vocabulary(target, loss, dtype):
    student, teacher = logits(3, 130, dtype=dtype), logits(3, 130, dtype=dtype, seed=1)
    absent = torch.arange(130) % 3 == 0
    student[:, absent], teacher[:, absent] = -INF, -INF
    values, gradient = rows(target, student, teacher, loss, 2.0)
    fewer_values, fewer_gradient = rows(target, student[:, ~absent], teacher[:, ~absent], loss, 2.0)
    assert bool((gradient[:, absent] == 0).all())
    torch.testing.assert_close(values, fewer_values, rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(gradient[:, ~absent], fewer_gradient, rtol=0.01 if dtype == BF16 else 2e-3, atol=1e-6)


@pytest.mark.parametrize("vocab", [7, 1271])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_teacher_mass_on_a_student_minus_infinity(target, dtype, vocab):
    """The value of ForwardKL is +inf, as in PyTorch, and its gradient is (q - p) / T all the same."""
    student, teacher = logits(3, vocab, dtype=dtype), logits(3, vocab, dtype=dtype, seed=1)
    student[1, 2], student[2, vocab - 1] = -INF, -INF
    values, gradient = rows(target, student, teacher, kd.ForwardKL(), 2.0)
    answer = divergence(kd.ForwardKL(), student, teacher, 2.0)
    assert answer.values.isinf().tolist() == [False, True, True]
    torch.testing.assert_close(values.double(), answer.values, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double(), answer.gradient, rtol=0.01 if dtype == BF16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [x for x in ALL_LOSSES if isinstance(x, kd.Perturbed)], ids=name_of)
def test_the_perturbed_series_is_infinite_where_its_divergence_is(target, loss):
    """The exact logarithm is kept beyond the perturbed orders; no sign of a coefficient makes it finite or NaN."""
    student, teacher = logits(3, 100), logits(3, 100, seed=1)
    student[1, 2], student[2, 99] = -INF, -INF
    values, gradient = rows(target, student, teacher, loss, 2.0)
    assert torch.equal(values[1:], torch.full((2,), INF))
    torch.testing.assert_close(values[0].double(), divergence(loss, student, teacher, 2.0).values[0], rtol=1e-5, atol=0)
    assert bool(gradient[0].isfinite().all())


@pytest.mark.parametrize("vocab", [7, 1271])
def test_student_mass_on_a_teacher_minus_infinity(target, vocab):
    student, teacher = logits(3, vocab), logits(3, vocab, seed=1)
    teacher[1, 2], teacher[2, vocab - 1] = -INF, -INF
    values, _ = rows(target, student, teacher, kd.ReverseKL())
    torch.testing.assert_close(
        values.double(), divergence(kd.ReverseKL(), student, teacher).values, rtol=1e-5, atol=0.0
    )
    assert values.isinf().tolist() == [False, True, True]


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=name_of)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_minus_infinity_on_one_side(target, loss, side, dtype):
    """0 log 0 = 0: every loss but those that are infinite there has its finite value and gradient."""
    if (loss.name, side) in (("forward_kl", "student"), ("perturbed", "student"), ("reverse_kl", "teacher")):
        side = "teacher" if side == "student" else "student"  # their infinite side has the two tests above
    student, teacher = logits(3, 100, dtype=dtype), logits(3, 100, dtype=dtype, seed=1)
    (student if side == "student" else teacher)[:, ::4] = -INF
    values, gradient = rows(target, student, teacher, loss, 2.0)
    answer = divergence(loss, student, teacher, 2.0)
    assert bool(answer.values.isfinite().all())
    assert bool(answer.gradient.isfinite().all())
    torch.testing.assert_close(values.double(), answer.values, rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), answer.gradient, rtol=0.01 if dtype == BF16 else 1e-5, atol=1e-6)
    assert bool((gradient[:, ::4] == 0).all()) or side == "teacher"


@EVERY_LOSS
def test_one_class_alone_with_mass(target, loss):
    """Everything else at -inf on both sides: two one-hot rows that agree."""
    student = torch.full((2, 100), -INF)
    student[0, 3], student[1, 99] = 5.0, -700.0
    values, gradient = rows(target, student, student.clone(), loss)
    assert float(values.abs().max()) <= 1e-7
    assert float(gradient.abs().max()) <= 1e-7


@EVERY_LOSS
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("poison", [math.nan, INF], ids=str)
@pytest.mark.parametrize("column", [0, 700, 1270])
def test_nan_stays_in_its_row(target, loss, side, poison, column):
    """NaN in, or +inf (whose softmax is NaN): NaN out for this row's value and its gradient, and for no other row."""
    student, teacher = logits(3, 1271), logits(3, 1271, seed=1)
    clean = rows(target, student, teacher, loss)
    (student if side == "student" else teacher)[1, column] = poison
    values, gradient = rows(target, student, teacher, loss)
    assert values.isnan().tolist() == [False, True, False]
    assert bool(gradient[1].isnan().all())
    for row in (0, 2):
        assert values[row] == clean[0][row]
        assert torch.equal(gradient[row], clean[1][row])


@EVERY_LOSS
def test_a_row_of_minus_infinity_is_nan_as_in_pytorch(target, loss):
    student, teacher = logits(2, 100), logits(2, 100, seed=1)
    student[1] = -INF
    values, gradient = rows(target, student, teacher, loss)
    assert values.isnan().tolist() == [False, True]
    assert gradient.isnan().any(-1).tolist() == [False, True]


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
def test_low_temperature(target, loss, dtype):
    check_against_oracle(target, loss, logits(3, 1000, dtype=dtype), logits(3, 1000, dtype=dtype, seed=1), 0.05)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
def test_logits_of_ten_thousand(target, loss, dtype):
    student, teacher = (
        logits(3, 1000, dtype=F64, seed=seed).sign() * 1e4 + logits(3, 1000, dtype=F64) for seed in (2, 3)
    )
    check_against_oracle(target, loss, student.to(dtype), teacher.to(dtype), 1.0)


@EVERY_LOSS
def test_huge_logits_of_one_sign_only_shift(target, loss):
    """exp(1e4) overflows and exp(-1e4) vanishes unless the row's maximum is taken off first."""
    for offset in (2.0**13, -(2.0**13)):
        check_against_oracle(target, loss, logits(3, 100) + offset, logits(3, 100, seed=1) - offset, 1.0)


@EVERY_LOSS
def test_high_temperature(target, loss):
    check_against_oracle(target, loss, logits(3, 100), logits(3, 100, seed=1), 100.0)


def check_against_oracle(target, loss, student, teacher, temperature):
    """The rule of oracle.py, with scales for logarithms as large as (z_max - z) / T."""
    answer = divergence(loss, student, teacher, temperature)
    peer = eager(loss, student, teacher, temperature, device=target.device)
    compute = F64 if student.dtype == F64 else F32
    depth = (
        1.0
        + max(float((x.double().amax(-1) - x.double().amin(-1)).max()) for x in (student, teacher)) / temperature / 4
    )
    values, gradient = rows(target, student, teacher, loss, temperature)
    assert bool(gradient.isfinite().all())
    size = scale(student, teacher, temperature, loss).deeper(depth)
    check_values(values, answer, peer, size, compute)
    check_gradient(gradient, answer, peer, size, compute)


def test_softmax_of_minus_infinity(target):
    z = torch.tensor([[0.0, -INF, 0.0], [-INF, -INF, 3.0], [-INF, -INF, -INF]]).to(target.device)
    q, log_q = (f(z, backend=target.backend).cpu() for f in (kd.softmax, kd.log_softmax))
    assert q[:2].tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(log_q[:2], z[:2].cpu().log_softmax(-1))
    assert bool(q[2].isnan().all())
    assert bool(log_q[2].isnan().all())


def test_a_nan_logit_spoils_its_softmax_row_only(target):
    z, _ = pair(3, 100, device=target.device)
    z = z.detach()
    z[1, 50] = math.nan
    for function in (kd.softmax, kd.log_softmax):
        assert function(z, backend=target.backend).isnan().all(-1).tolist() == [False, True, False]
        assert function(z, backend=target.backend).isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("order", ["rising", "falling", "empty first", "one late peak"])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 20.0])
def test_where_in_a_long_row_its_largest_logit_lies_does_not_matter(target, order, temperature):
    """A walk in blocks keeps a running reference for its exponentials: every way in which it has to move."""
    vocab = 5000
    ramp = torch.linspace(-200.0, 200.0, vocab)
    student = {
        "rising": ramp,
        "falling": ramp.flip(0),
        "empty first": torch.where(torch.arange(vocab) < 3000, -torch.inf, ramp),
        "one late peak": torch.where(torch.arange(vocab) == 4500, 300.0, 0.0),
    }[order].repeat(2, 1)
    teacher = student.roll(7, 1) if order != "empty first" else student + torch.sin(torch.arange(vocab) * 1.0)
    labels = torch.tensor([4500, 4999])
    for function in (
        lambda z, t, backend: kd.distillation(z, t, labels.to(z.device), temperature=temperature, backend=backend),
        lambda z, t, backend: kd.divergence(z, t, kd.JensenShannon(0.3), temperature=temperature, backend=backend),
    ):
        z = student.to(target.device, copy=True).requires_grad_()
        exact = student.double().requires_grad_()
        value = function(z, teacher.to(target.device), target.backend)
        answer = function(exact, teacher.double(), "reference")
        value.backward()
        answer.backward()
        # T^2 multiplies the rounding of float32 logarithms, in PyTorch's own composition too.
        room = 1.0 + temperature**2
        torch.testing.assert_close(value.cpu().double(), answer.detach(), rtol=2e-5, atol=1e-6 * room)
        torch.testing.assert_close(z.grad.cpu().double(), exact.grad, rtol=2e-4, atol=1e-7 * room)
