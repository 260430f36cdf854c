"""The oracle itself: a closed form written by hand is only worth something once differences agree with it."""

import math

import pytest
import torch
from cases import ALL_LOSSES, F64, logits, name_of, per_class
from oracle import EXAMPLES, TERMS, cross_entropy, divergence

import kdkernels as kd


@pytest.mark.parametrize("loss", [*ALL_LOSSES, per_class(5)], ids=name_of)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient_is_the_derivative_of_the_value(loss, temperature):
    student, teacher = logits(2, 5, dtype=F64), logits(2, 5, dtype=F64, seed=1)
    step = 1e-5
    for column in range(5):
        shift = torch.zeros(2, 5, dtype=F64)
        shift[:, column] = step
        up, down = (divergence(loss, student + sign * shift, teacher, temperature).values for sign in (1, -1))
        slope = divergence(loss, student, teacher, temperature).gradient[:, column]
        assert torch.allclose((up - down) / (2 * step), slope, rtol=1e-7, atol=1e-9)


def test_values_worked_by_hand():
    # q = (1/2, 1/2), p = (1/4, 3/4): every divergence is a short sum of logarithms.
    student, teacher = torch.zeros(1, 2, dtype=F64), torch.tensor([[0.0, math.log(3.0)]], dtype=F64)
    m = (0.375, 0.625)
    skew = (0.1 * 0.25 + 0.9 * 0.5, 0.1 * 0.75 + 0.9 * 0.5)
    skew_reverse = (0.1 * 0.5 + 0.9 * 0.25, 0.1 * 0.5 + 0.9 * 0.75)
    kl, per_class = 0.25 * math.log(0.5) + 0.75 * math.log(1.5), torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    expected = [
        (kd.ForwardKL(), kl),
        (kd.ReverseKL(), 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)),
        (
            kd.JensenShannon(),
            0.5 * (0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1]))
            + 0.5 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])),
        ),
        (kd.TotalVariation(), 0.25),
        (kd.SkewKL(), 0.25 * math.log(0.25 / skew[0]) + 0.75 * math.log(0.75 / skew[1])),
        (kd.SkewReverseKL(), 0.5 * math.log(0.5 / skew_reverse[0]) + 0.5 * math.log(0.5 / skew_reverse[1])),
        (kd.Perturbed(torch.tensor([2.0, 3.0])), kl + 2.0 / 2 + 3.0 / 4),
        (kd.Perturbed(per_class), kl + 0.25 * (2.0 / 2 + 3.0 / 4) + 0.75 * (4.0 / 2 + 5.0 / 4)),
    ]
    assert {loss.name for loss, _ in expected} == set(TERMS)
    for loss, value in expected:
        assert float(divergence(loss, student, teacher).values) == pytest.approx(value, rel=1e-13)
    assert float(cross_entropy(student, torch.tensor([1])).values) == pytest.approx(math.log(2.0), rel=1e-15)


def test_every_registered_loss_has_an_answer():
    assert set(TERMS) == set(kd.LOSSES)
    assert set(EXAMPLES) <= set(kd.LOSSES)
