"""The perturbed loss under the interpreter: the only one with a table, shared by all classes or with a column each."""

from __future__ import annotations

import pytest
import torch
from _triton_interpreter import INF, VOCABS, assert_near, empty_like, oracle, rows_of, run

from kdkernels.losses import ForwardKL, Perturbed

pytestmark = pytest.mark.filterwarnings("ignore:some coefficient")


def coefficients(*shape, largest=3.0):
    """The range in which they are searched starts at -1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) * (largest + 1) - 1


@pytest.mark.parametrize("orders", (1, 8))
@pytest.mark.parametrize("vocab", (2, 100, 300))
def test_shared_coefficients(form, vocab, orders):
    loss = Perturbed(coefficients(orders))
    arguments = (loss, rows_of(2, vocab), rows_of(2, vocab, seed=1))
    gradient = empty_like(arguments[1])
    assert_near(run(*arguments, gradient), gradient, oracle(*arguments), peak=orders)


@pytest.mark.parametrize("aligned, orders", ((True, 3), (False, 5)))
@pytest.mark.parametrize("vocab", VOCABS)
def test_coefficients_per_class(form, vocab, aligned, orders):
    """The table is padded to 16 columns; a tile may reach beyond it. Aligned rows take vectors of it, others do not."""
    loss = Perturbed(coefficients(vocab, orders))
    stride = -(-vocab // 16) * 16 + (0 if aligned else 1)
    student, teacher = rows_of(2, stride)[:, :vocab], rows_of(2, stride, seed=1)[:, :vocab]
    gradient, labels = empty_like(student, stride), torch.tensor([0, vocab - 1])
    expected = oracle(loss, student, teacher, labels, temperature=2.0)
    assert_near(run(loss, student, teacher, gradient, labels, temperature=2.0), gradient, expected, peak=orders)


def test_coefficients_of_masked_classes_do_not_count(form):
    keep = torch.arange(300) % 3 == 0
    student, teacher, wild = rows_of(1, 300), rows_of(1, 300, seed=1), coefficients(300, 3)
    expected = oracle(Perturbed(wild[keep]), student[:, keep], teacher[:, keep])
    student[:, ~keep], teacher[:, ~keep], wild[~keep] = -INF, -INF, 1e30
    gradient = empty_like(student)
    assert_near(run(Perturbed(wild), student, teacher, gradient), gradient[:, keep], expected, peak=3)
    assert (gradient[:, ~keep] == 0).all()


def test_no_perturbation_is_the_forward_kl(form):
    student, teacher = rows_of(2, 300), rows_of(2, 300, seed=1)
    gradients = empty_like(student), empty_like(student)
    values = run(Perturbed(torch.zeros(300, 2)), student, teacher, gradients[0])
    torch.testing.assert_close(values, run(ForwardKL(), student, teacher, gradients[1]), rtol=1e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("vocab", (5000, 8192))
def test_a_table_as_it_is_launched(vocab):
    """Long rows with a column per class, which the configs stream, in real tiles."""
    loss = Perturbed(coefficients(vocab, 2))
    student, teacher = rows_of(1, vocab, torch.bfloat16), rows_of(1, vocab, torch.float16, seed=1)
    gradient = empty_like(student)
    assert_near(run(loss, student, teacher, gradient), gradient, oracle(loss, student, teacher), peak=2)
