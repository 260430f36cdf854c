"""The Triton backend under the interpreter, hard inputs: rows not read, labels, -inf, NaN, extreme temperatures."""

from __future__ import annotations

import pytest
import torch
from _triton_interpreter import INF, NAN, assert_near, empty_like, oracle, rows_of, run

from kdkernels.backends import triton as backend
from kdkernels.backends.calls import Softmax
from kdkernels.losses import LOSSES


def test_rows_of_weight_zero_are_not_read(form, loss):
    student, teacher = rows_of(4, 100), rows_of(4, 100, seed=1)
    student[1], teacher[2] = NAN, NAN
    soft, hard = torch.tensor([1.0, 0, 0, 1]), torch.tensor([1.0, 0, 0, 0])
    labels = torch.tensor([3, -100, 10**12, -100])
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient, labels, soft, hard)
    counted = torch.tensor([0, 3])
    expected = oracle(loss, student[counted], teacher[counted], labels[counted].clamp(min=0), None, hard[counted])
    assert_near(values[counted], gradient[counted], expected)
    assert (values[1:3] == 0).all() and (gradient[1:3] == 0).all()


def test_a_part_of_weight_zero_does_not_count(form):
    """The teacher of a row without a divergence is not looked at; the label of one without a cross-entropy is not."""
    student, teacher = rows_of(2, 100), rows_of(2, 100, seed=1)
    teacher[1] = NAN
    loss = LOSSES["jensen_shannon"]()
    gradient = empty_like(student)
    labels, soft, hard = torch.tensor([-5, 7]), torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    values = run(loss, student, teacher, gradient, labels, soft, hard)
    clean = torch.where(teacher.isnan(), 0.0, teacher)
    assert_near(values, gradient, oracle(loss, student, clean, labels.clamp(min=0), soft, hard))
    values = run(loss, student, clean, gradient, labels, None, None, scales=(1.0, 0.0))
    assert_near(values, gradient, oracle(loss, student, clean))


@pytest.mark.parametrize("label", (-1, -100, 100, 2**31, -(2**63)))
def test_a_label_that_is_no_class_makes_its_row_nan(form, label):
    student, teacher = rows_of(2, 100), rows_of(2, 100, seed=1)
    values = run(LOSSES["forward_kl"](), student, teacher, empty_like(student), torch.tensor([label, 4]))
    assert values[0].isnan() and values[1].isfinite()


def test_masked_columns(form, loss):
    """-inf on both sides adds nothing to the value or the gradient, wherever it is: the first tile is all -inf."""
    keep = torch.zeros(300, dtype=torch.bool)
    keep[140:290:3] = True
    student, teacher = rows_of(1, 300), rows_of(1, 300, seed=1)
    expected = oracle(loss, student[:, keep], teacher[:, keep], temperature=3.0)
    student[:, ~keep], teacher[:, ~keep] = -INF, -INF
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient, temperature=3.0)
    assert_near(values, gradient[:, keep], expected)
    assert (gradient[:, ~keep] == 0).all()


def test_one_sided_minus_infinity(form, loss):
    student, teacher = rows_of(1, 200), rows_of(1, 200, seed=1)
    teacher[:, 5] = -INF
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient)
    if loss.name == "reverse_kl":
        assert values.item() == INF
    else:
        assert_near(values, gradient, oracle(loss, student, teacher))
    student, teacher = teacher, student
    values = run(loss, student, teacher, gradient)
    expected = oracle(loss, student, teacher)
    if loss.name in ("forward_kl", "perturbed"):
        assert values.item() == INF == expected[0].item()
        torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-6)
    else:
        assert_near(values, gradient, expected)


@pytest.mark.parametrize("vocab", (1, 200))
@pytest.mark.parametrize("poison", (NAN, INF, "all -inf"))
def test_undefined_rows_are_nan_and_stay_alone(form, loss, poison, vocab):
    """A maximum drops NaN on some hardware; the sum of exponentials must carry it. The neighbours are unharmed."""
    for side in (0, 1):
        logits = [rows_of(2, vocab), rows_of(2, vocab, seed=1)]
        expected = oracle(loss, *logits)
        if poison == "all -inf":
            logits[side][1] = -INF
        else:
            logits[side][1, vocab // 2] = poison
        gradient = empty_like(logits[0])
        values = run(loss, *logits, gradient)
        assert values[1].isnan()
        assert_near(values[:1], gradient[:1], (expected[0][:1], expected[1][:1]))


@pytest.mark.parametrize("temperature", (0.05, 0.3, 20.0))
@pytest.mark.parametrize("scale", (1.0, 1e4))
def test_temperatures_and_huge_logits(form, loss, temperature, scale):
    student, teacher = rows_of(1, 200, scale=scale), rows_of(1, 200, scale=scale, seed=1)
    student[0, 7], teacher[0, 7] = 4 * scale, 4 * scale
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient, temperature=temperature)
    expected = oracle(loss, student, teacher, temperature=temperature)
    # Relative to log q, whose float32 rounding no schedule can undo: up to 8 scale / T in size.
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-6, atol=2e-7 * max(8 * scale / temperature, 10))
    unit = 2e-7 * max(8 * scale / temperature, 10) * max(1.0, 1 / temperature)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=min(unit, 0.1))
    assert gradient.isfinite().all()


def test_softmax_of_undefined_rows(form):
    logits = rows_of(4, 300)
    logits[0], logits[1, 7], logits[2, 9] = -INF, NAN, INF
    for log in (False, True):
        output = empty_like(logits)
        backend.softmax(logits, output, Softmax(log=log))
        assert output[0].isnan().all() and output[1].isnan().all() and output[2, 9].isnan()
        assert output[3].isfinite().all()
