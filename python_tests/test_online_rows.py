"""A function as loss: rows that count nowhere, and terms that have no share, are as if they were not there."""

import pytest
import torch
import torch.nn.functional as F
from cases import F64
from online_teachers import CLASSES
from torch import nn

import kdkernels as kd
from kdkernels.methods.online import logit_mse, online_distillation

INFINITE = [float("nan"), float("inf"), float("-inf")]
LABELS = torch.tensor([0, 1, 2, 3, 4, 1, 0, -100])


class Echo:
    """The batch is the teacher's logits."""

    def at(self, progress):
        return nn.Identity()


def logits(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 8, CLASSES, generator=generator, dtype=F64).to(dtype).unbind()


def root(student, teacher):
    """Of a gradient that is infinite where both are equal."""
    return (student - teacher).square().sum(-1).sqrt()


def cosine(student, teacher):
    """0 / 0 of a row of zeros."""
    return (student * teacher).sum(-1) / (student.square().sum(-1) * teacher.square().sum(-1)).sqrt()


def asked(student, teacher, loss, alpha=0.9, labels=LABELS):
    student = student.clone().requires_grad_()
    value = online_distillation(student, teacher, labels, Echo(), 0.5, loss, alpha=alpha)
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize("loss", [kd.ForwardKL(), logit_mse, root, cosine], ids=["kl", "mse", "root", "cosine"])
@pytest.mark.parametrize("where", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", INFINITE)
def test_an_ignored_row_counts_nowhere_whatever_it_holds(loss, where, value):
    """The others give what they give alone."""
    student, teacher = (each.clone() for each in logits())
    for each, name in ((student, "student"), (teacher, "teacher")):
        if where in (name, "both"):
            each[-1] = value
    got, gradient = asked(student, teacher, loss)
    wanted, alone = asked(student[:-1], teacher[:-1], loss, labels=LABELS[:-1])
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient[:-1], alone)
    assert bool((gradient[-1] == 0).all()) and bool((alone != 0).any())


@pytest.mark.parametrize("value", INFINITE)
def test_what_a_function_learns_by_is_not_touched_by_ignored_rows(value):
    """One with parameters, which all rows reach."""
    student, teacher = (each.clone() for each in logits())
    student[-1] = teacher[-1] = value
    scale = torch.ones((), requires_grad=True)
    asked(student, teacher, lambda s, t: scale * logit_mse(s, t))
    assert bool(torch.isfinite(scale.grad))


@pytest.mark.parametrize("rows", [False, True])
def test_cross_entropy_without_a_share(rows):
    """An infinite one: alpha 1 for all rows, or for that one."""
    student, teacher = logits(dtype=F64)
    student = student.clone()
    student[3, 3] = -torch.inf  # the row of label 3
    alpha = torch.full((8,), 0.5, dtype=F64)
    alpha[3] = 1.0
    got, gradient = asked(student, teacher, lambda s, t: (s - t)[:, 1].square(), alpha if rows else 1.0)
    soft = (student - teacher)[:-1, 1].square()
    hard = F.cross_entropy(student[:-1], LABELS[:-1], reduction="none")
    wanted = torch.where(alpha[:-1] < 1, 0.5 * soft + 0.5 * hard, soft).mean() if rows else soft.mean()
    torch.testing.assert_close(got, wanted)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[3] != 0).any())


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("loss", [logit_mse, root])
def test_a_function_without_a_share(rows, loss):
    """One whose value, or whose gradient, is infinite."""
    student, teacher = (each.clone() for each in logits(dtype=F64))
    teacher[3] = student[3] if loss is root else torch.inf
    alpha = torch.full((8,), 0.5, dtype=F64)
    alpha[3] = 0.0
    got, gradient = asked(student, teacher, loss, alpha if rows else 0.0)
    hard = F.cross_entropy(student[:-1], LABELS[:-1], reduction="none")
    wanted = torch.where(alpha[:-1] > 0, 0.5 * loss(student, teacher)[:-1] + 0.5 * hard, hard) if rows else hard
    torch.testing.assert_close(got, wanted.mean())
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[3] != 0).any())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_term_with_a_share_is_not_hidden(alpha):
    """Infinity and NaN of a row that counts are seen where its term has a share."""
    student, teacher = (each.clone() for each in logits())
    teacher[3] = torch.nan
    assert bool(asked(student, teacher, logit_mse, alpha)[0].isnan()) == (alpha > 0)
    student, teacher = (each.clone() for each in logits())
    student[3, 3] = -torch.inf
    got = asked(student, teacher, lambda s, t: (s - t)[:, 1], alpha)[0]
    assert bool(got.isinf()) == (alpha < 1)


def test_no_row_that_counts():
    got, gradient = asked(*(torch.full((8, CLASSES), torch.nan) for _ in range(2)), logit_mse, labels=LABELS * 0 - 100)
    assert got == 0 and bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, F64])
@pytest.mark.parametrize("alpha", [0.9, torch.tensor(0.9), torch.linspace(0, 1, 8)], ids=["number", "0-d", "rows"])
def test_the_function_sees_the_logits_in_their_own_dtype(dtype, alpha):
    seen, (student, teacher) = [], logits(dtype=dtype)

    def function(*given):
        seen.extend(given)
        return logit_mse(*given)

    value, gradient = asked(student, teacher, function, alpha)
    assert [each.dtype for each in seen] == [dtype] * 2 and gradient.dtype == dtype
    assert value.dtype == (F64 if dtype is F64 else torch.float32)
    assert torch.equal(seen[0].detach()[1:7], student[1:7]) and torch.equal(seen[1][1:7], teacher[1:7])
