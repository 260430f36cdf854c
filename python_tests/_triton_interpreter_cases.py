"""The Triton backend under the interpreter, ordinary inputs: lengths, dtypes, strides, weights, softmax, scaling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _triton_interpreter import EPSILON, INF, NAN, VOCABS, assert_near, empty_like, oracle, rows_of, run

from kdkernels.backends import triton as backend
from kdkernels.backends.calls import Softmax
from kdkernels.losses import LOSSES


@pytest.mark.parametrize("vocab", VOCABS)
def test_values_and_gradients(form, loss, vocab):
    arguments = (loss, rows_of(2, vocab), rows_of(2, vocab, seed=1))
    gradient = empty_like(arguments[1], vocab + 5)
    expected = oracle(*arguments, temperature=2.0)
    assert_near(run(*arguments, gradient, temperature=2.0), gradient, expected)
    assert_near(run(*arguments, None, temperature=2.0), None, expected)


@pytest.mark.parametrize("vocab", (2, 300))
def test_both_parts_with_weights(form, loss, vocab):
    arguments = (loss, rows_of(3, vocab), rows_of(3, vocab, seed=1))
    keywords = {
        "labels": torch.tensor([0, vocab - 1, vocab // 2]),
        "soft": torch.tensor([1.0, 0.0, 0.5]),
        "hard": torch.tensor([2.0, 1.0, 0.0]),
        "temperature": 0.5,
        "scales": (0.9, 0.3),
    }
    gradient = empty_like(arguments[1])
    expected = oracle(*arguments, **keywords)
    assert_near(run(*arguments, gradient, **keywords), gradient, expected, peak=2)
    assert_near(run(*arguments, None, **keywords), None, expected, peak=2)


def test_a_long_row_keeps_its_digits(loss, monkeypatch):
    """64k columns in real tiles, about one nat: 1e-6 relative."""
    student, teacher = rows_of(1, 65537, scale=1.0), rows_of(1, 65537, scale=1.0, seed=1)
    gradient = empty_like(student)
    values = run(loss, student, teacher, gradient)
    expected = oracle(loss, student, teacher)
    torch.testing.assert_close(values.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("teacher_dtype", EPSILON)
@pytest.mark.parametrize("student_dtype", EPSILON)
def test_dtypes(form, student_dtype, teacher_dtype):
    for name in ("forward_kl", "skew_reverse_kl"):
        loss = LOSSES[name]()
        student, teacher = rows_of(2, 144, student_dtype), rows_of(2, 144, teacher_dtype, seed=1)
        gradient = empty_like(student)
        labels = torch.tensor([3, 143])
        values = run(loss, student, teacher, gradient, labels)
        assert_near(values, gradient, oracle(loss, student, teacher, labels))


@pytest.mark.parametrize("aligned", (True, False))
def test_strided_rows_and_a_gradient_in_place(form, aligned):
    """Rows of a wider buffer; the gradient takes the student's place, and nothing beside it is touched."""
    vocab = 272 if aligned else 271
    loss = LOSSES["reverse_kl"]()
    wide = rows_of(3, vocab + 16 if aligned else vocab + 3)
    student, teacher = wide[:, :vocab], rows_of(3, 2 * vocab, seed=1)[:, vocab:]
    labels, beside = torch.tensor([5, 0, vocab - 1]), wide[:, vocab:].clone()
    expected = oracle(loss, student.clone(), teacher, labels)
    assert_near(run(loss, student, teacher, student, labels), student, expected)
    assert torch.equal(wide[:, vocab:], beside)


def test_no_rows_launch_nothing():
    empty = torch.empty(0, 10)
    assert run(LOSSES["forward_kl"](), empty, empty, empty).shape == (0,)
    backend.softmax(empty, empty, Softmax())
    backend.softmax_backward(empty, empty, empty, Softmax())
    backend.scale_rows(empty, torch.ones(0))


@pytest.mark.parametrize("log", (False, True))
@pytest.mark.parametrize("vocab", (1, 7, 300, 1271))
def test_softmax(form, vocab, log):
    logits, upstream = rows_of(2, vocab + 2)[:, :vocab], rows_of(2, vocab, seed=1)
    logits[1, : vocab // 2] = -INF
    for temperature in (0.05, 1.0, 20.0):
        output, gradient = empty_like(logits), empty_like(logits)
        backend.softmax(logits, output, Softmax(temperature, log))
        z = logits.double().requires_grad_()
        expected = (F.log_softmax if log else F.softmax)(z / temperature, dim=-1)
        torch.testing.assert_close(output.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        backend.softmax_backward(upstream, output, gradient, Softmax(temperature, log))
        expected.backward(upstream.double())
        torch.testing.assert_close(gradient.double(), z.grad, rtol=1e-4, atol=2e-5 / temperature)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("vocab", (1, 100, 40000))
def test_scale_rows(vocab, dtype):
    wide = rows_of(3, vocab + 3, dtype)
    before, gradient = wide.clone(), wide[:, :vocab]
    backend.scale_rows(gradient, torch.ones(()))
    backend.scale_rows(gradient, torch.ones(3))
    assert torch.equal(wide, before)
    for factor in (torch.tensor(0.5), torch.tensor([1.0, -2.0, 0.0]), torch.tensor(4.0).expand(3)):
        expected = gradient * (factor if factor.dim() == 0 else factor[:, None]).to(dtype)
        backend.scale_rows(gradient, factor)
        assert torch.equal(gradient, expected)
    backend.scale_rows(gradient, torch.tensor([1.0, NAN, 1.0]))
    assert gradient[1].isnan().all() and gradient[0].isfinite().all()
    assert torch.equal(wide[:, vocab:], before[:, vocab:])
