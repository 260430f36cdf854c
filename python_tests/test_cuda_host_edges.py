"""The CUDA divergence schedule run by host threads: weights, labels, -inf and NaN, in every team and form."""

from __future__ import annotations

import math

import cuda_host
import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, NO_DIVERGENCE, logits, name_of
from cuda_host import Team, placed
from oracle import cross_entropy, divergence

import kdkernels as kd

INF = math.inf
TEAMS = [Team(1, 4), Team(4, 4), Team(16, 1), Team(1, 8, staged=False)]
VOCAB = 1271
LABELS = torch.tensor([5, VOCAB - 1, 640, 0])
EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
EVERY_TEAM = pytest.mark.parametrize("team", TEAMS, ids=str)
HALF_AND_SINGLE = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name_of)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return cuda_host.load(tmp_path_factory.getbasetemp())


def inputs(rows=4, vocab=VOCAB, dtype=F32):
    return logits(rows, vocab, dtype=dtype), logits(rows, vocab, dtype=dtype, seed=1)


def run(host, team, loss, student, teacher, **options):
    """(values, gradient) of rows that lie on no boundary."""
    z, t = placed(student, 1, 2), placed(teacher, 2, 1)
    gradient = placed(torch.full_like(student, torch.nan), 3, 2)
    values = host.divergence(team, loss, z.view, t.view, gradient.view, **options)
    assert gradient.padding_is_untouched()
    return values, gradient.view.contiguous()


def close(got, wanted, dtype=F32, atol=1e-6):
    torch.testing.assert_close(got.double(), wanted.double(), rtol={BF16: 0.01, F16: 2e-3}.get(dtype, 1e-5), atol=atol)


@EVERY_TEAM
@EVERY_LOSS
def test_weights_per_row_and_rows_that_are_not_read(host, loss, team):
    """A weight of 0 takes its term away exactly, whatever the logits that only this term reads."""
    student, teacher = inputs()
    soft, hard = torch.tensor([0.0, 2.0, 0.0, -0.5]), torch.tensor([0.0, 0.0, 3.0, 0.25])
    wanted = divergence(loss, student, teacher, 2.0).times(soft)
    wanted = wanted.plus(cross_entropy(student, LABELS).times(0.5 * hard))
    student[0], teacher[0], teacher[2] = torch.nan, torch.nan, torch.nan
    options = {"temperature": 2.0, "labels": LABELS, "soft_weight": soft, "hard_weight": hard, "hard_scale": 0.5}
    values, gradient = run(host, team, loss, student, teacher, **options)
    assert values[0] == 0
    assert bool((gradient[0] == 0).all())
    close(values, wanted.values)
    slack = wanted.slack if isinstance(wanted.slack, torch.Tensor) else torch.zeros_like(wanted.gradient)
    error = (gradient.double() - wanted.gradient).abs()
    assert bool((error[1:] <= 1e-6 + 1e-5 * wanted.gradient[1:].abs() + slack[1:].abs()).all())


@EVERY_TEAM
@HALF_AND_SINGLE
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_no_weight_of_the_soft_term_at_all(host, team, dtype, temperature):
    """soft_scale = 0 is plain cross-entropy: the teacher may be anything."""
    student, teacher = inputs(dtype=dtype)
    teacher[:] = torch.nan
    options = {"temperature": temperature, "labels": LABELS, "soft_scale": 0.0}
    values, gradient = run(host, team, kd.JensenShannon(), student, teacher, **options)
    wanted = cross_entropy(student, LABELS)
    close(values, wanted.values)
    close(gradient, wanted.gradient, dtype)


@EVERY_TEAM
@pytest.mark.parametrize("label", [-1, -100, VOCAB, 2**40, -(2**62)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_that_are_no_class(host, team, label, temperature):
    """NaN where the label counts, no access out of bounds anywhere; nothing where its weight is 0."""
    student, teacher = inputs()
    labels, hard = LABELS.clone(), torch.tensor([1.0, 1.0, 0.0, 1.0])
    labels[1] = labels[2] = label
    options = {"temperature": temperature, "labels": labels, "hard_weight": hard}
    values, gradient = run(host, team, kd.ForwardKL(), student, teacher, **options)
    soft, fine = divergence(kd.ForwardKL(), student, teacher, temperature), torch.tensor([0, 2, 3])
    wanted = soft.plus(cross_entropy(student, LABELS).times(hard))
    assert values.isnan().tolist() == [False, True, False, False]
    close(values[fine], wanted.values[fine])
    close(gradient[fine], wanted.gradient[fine])


@EVERY_TEAM
@EVERY_LOSS
@HALF_AND_SINGLE
def test_minus_infinity_on_both_sides(host, team, loss, dtype):
    """As if the columns were not there; whole blocks of a cluster have no other columns."""
    student, teacher = inputs(dtype=dtype)
    for absent in (torch.arange(VOCAB) % 3 == 0, torch.arange(VOCAB) < 700, torch.arange(VOCAB) != 1203):
        z, t = student.clone(), teacher.clone()
        z[:, absent], t[:, absent] = -INF, -INF
        values, gradient = run(host, team, loss, z, t, temperature=2.0)
        wanted = divergence(loss, student[:, ~absent], teacher[:, ~absent], 2.0)
        assert bool((gradient[:, absent] == 0).all())
        close(values, wanted.values, atol=2e-6)
        close(gradient[:, ~absent], wanted.gradient, dtype, atol=5e-6)


@EVERY_TEAM
@pytest.mark.parametrize(
    ("loss", "side"),
    [(loss, side) for loss in DEFAULT_LOSSES for side in ("student", "teacher")],
    ids=lambda each: name_of(each),
)
def test_minus_infinity_on_one_side(host, team, loss, side):
    """0 log 0 = 0, and +inf where the formula has it."""
    student, teacher = inputs()
    (student if side == "student" else teacher)[1:, ::4] = -INF
    values, gradient = run(host, team, loss, student, teacher, temperature=2.0)
    wanted = divergence(loss, student, teacher, 2.0)
    infinite = (loss.name, side) in (("forward_kl", "student"), ("perturbed", "student"), ("reverse_kl", "teacher"))
    assert values.isinf().tolist() == [False, infinite, infinite, infinite]
    close(values, wanted.values, atol=2e-6)
    rows = slice(0, 1) if infinite and loss.name != "forward_kl" else slice(None)
    close(gradient[rows], wanted.gradient[rows], atol=2e-6)


@EVERY_TEAM
@EVERY_LOSS
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("poison", [math.nan, INF], ids=str)
def test_nan_stays_in_its_row(host, team, loss, side, poison):
    student, teacher = inputs()
    clean = run(host, team, loss, student, teacher, labels=LABELS)
    for column in (0, 700, VOCAB - 1):
        each = {"student": student.clone(), "teacher": teacher.clone()}
        each[side][1, column] = poison
        values, gradient = run(host, team, loss, **each, labels=LABELS)
        assert values.isnan().tolist() == [False, True, False, False]
        assert bool(gradient[1].isnan().all())
        others = torch.tensor([0, 2, 3])
        assert torch.equal(values[others], clean[0][others])
        assert torch.equal(gradient[others], clean[1][others])


@EVERY_TEAM
@EVERY_LOSS
@pytest.mark.parametrize("dtype", [F32, BF16], ids=name_of)
def test_a_row_of_minus_infinity_is_nan_as_in_pytorch(host, team, loss, dtype):
    student, teacher = inputs(dtype=dtype)
    student[1], teacher[2] = -INF, -INF
    values, gradient = run(host, team, loss, student, teacher)
    assert values.isnan().tolist() == [False, True, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, True, False]


@EVERY_TEAM
@EVERY_LOSS
def test_equal_rows(host, team, loss):
    """Added up in one order, both sides agree to the last bit; so do ones with all mass in one class."""
    student, _ = inputs()
    student[1], student[2] = -INF, -1e4
    student[1, 3], student[2, VOCAB - 1] = 5.0, 1e4
    z, gradient = placed(student, 1, 2).view, torch.full_like(student, torch.nan)
    values = host.divergence(team, loss, z, z, gradient)
    wanted = divergence(loss, student, student)
    close(values, wanted.values)
    close(gradient, wanted.gradient)
    if loss.name not in NO_DIVERGENCE:
        assert bool((values == 0).all())
        assert bool((gradient == 0).all())
