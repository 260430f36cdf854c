"""alpha T^2 D + (1 - alpha) CE in one walk: alpha per row, labels, and what is counted."""

import pytest
import torch
from cases import DEFAULT_LOSSES, F64, logits, name_of, pair, value_and_gradient
from oracle import cross_entropy, distillation, divergence

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
LABELS = torch.tensor([3, 0, 99, 50, 7])


def close(got, wanted):
    torch.testing.assert_close(got.cpu().double(), wanted.double(), rtol=1e-12, atol=1e-14)


@pytest.fixture
def batch():
    """float64, so that what is compared is the definition and not its rounding; test_numerics.py has the rest."""
    return logits(5, 100, dtype=F64), logits(5, 100, dtype=F64, seed=1)


def call(where, batch, labels=LABELS, loss=None, **options):
    student, teacher = (x.to(where.device) for x in batch)
    options = {name: x.to(where.device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    options = {"temperature": 4.0, "reduction": "none", "backend": where.backend} | options
    labels = labels.to(where.device)
    return value_and_gradient(lambda z: kd.distillation(z, teacher, labels, loss or kd.ForwardKL(), **options), student)


@EVERY_LOSS
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0, 1])
def test_alpha_of_the_batch(where, batch, loss, alpha):
    answer = distillation(loss, *batch, LABELS, alpha, 4.0)
    values, gradient = call(where, batch, loss=loss, alpha=alpha)
    close(values, answer.values)
    close(gradient, answer.gradient)


def test_alpha_defaults_to_one_half(where, batch):
    close(call(where, batch)[0], distillation(kd.ForwardKL(), *batch, LABELS, 0.5, 4.0).values)


@EVERY_LOSS
def test_alpha_of_each_row(where, batch, loss):
    alpha = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.9], dtype=F64)
    answer = distillation(loss, *batch, LABELS, alpha, 4.0)
    values, gradient = call(where, batch, loss=loss, alpha=alpha)
    close(values, answer.values)
    close(gradient, answer.gradient)


def test_alpha_of_each_row_has_the_leading_shape(where):
    student, teacher = logits(2, 3, 7, dtype=F64), logits(2, 3, 7, dtype=F64, seed=1)
    labels, alpha = torch.arange(6).view(2, 3), torch.linspace(0, 1, 6, dtype=F64).view(2, 3)
    values, _ = call(where, (student, teacher), labels, alpha=alpha)
    flat = distillation(kd.ForwardKL(), student.view(6, 7), teacher.view(6, 7), labels.view(6), alpha.view(6), 4.0)
    close(values, flat.values.view(2, 3))


def test_alpha_as_a_single_tensor(where, batch):
    close(call(where, batch, alpha=torch.tensor(0.3, dtype=F64))[0], call(where, batch, alpha=0.3)[0].cpu())


def test_cross_entropy_has_temperature_one_and_no_factor(where, batch):
    answer = cross_entropy(batch[0], LABELS)
    for options in ({}, {"tau_squared": False}, {"temperature": 0.5}):
        values, gradient = call(where, batch, alpha=0.0, **options)
        close(values, answer.values)
        close(gradient, answer.gradient)


def test_tau_squared_is_the_divergence_s_alone(where, batch):
    wanted = divergence(kd.ForwardKL(), *batch, 4.0).times(0.3 / 16).plus(cross_entropy(batch[0], LABELS).times(0.7))
    values, gradient = call(where, batch, alpha=0.3, tau_squared=False)
    close(values, wanted.values)
    close(gradient, wanted.gradient)


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 1000])
def test_ignored_rows_count_in_neither_term(where, batch, ignore_index):
    labels = LABELS.clone()
    labels[[1, 4]] = ignore_index
    counted = labels != ignore_index
    answer = distillation(kd.ForwardKL(), *batch, labels.where(counted, 0), 0.3, 4.0).times(counted.double())
    rows = int(counted.sum())
    for reduction, divisor in [("none", 1), ("sum", 1), ("mean", rows), ("batchmean", 5)]:
        value, gradient = call(where, batch, labels, alpha=0.3, ignore_index=ignore_index, reduction=reduction)
        close(value, answer.values if reduction == "none" else answer.values.sum() / divisor)
        close(gradient, answer.gradient / divisor)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_all_ignored(where, batch, reduction):
    value, gradient = call(where, batch, torch.full((5,), -100), reduction=reduction)
    assert bool((value == 0).all())
    assert bool((gradient == 0).all())


def test_mask_weight_and_ignored_labels_together(where, batch):
    labels = LABELS.clone()
    labels[0] = -100
    mask, weight = torch.tensor([True, False, True, True, True]), torch.tensor([9.0, 9.0, 0.5, 2.0, 1.0], dtype=F64)
    factor = torch.tensor([0.0, 0.0, 0.5, 2.0, 1.0], dtype=F64)
    answer = distillation(kd.ForwardKL(), *batch, LABELS, 0.3, 4.0).times(factor)
    for normalizer, divisor in [(None, 3), (7.0, 7), (torch.tensor(7), 7)]:
        options = {"alpha": 0.3, "mask": mask, "weight": weight, "reduction": "mean", "normalizer": normalizer}
        value, gradient = call(where, batch, labels, **options)
        close(value, answer.values.sum() / divisor)
        close(gradient, answer.gradient / divisor)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_label_dtypes(where, batch, dtype):
    assert torch.equal(call(where, batch, LABELS.to(dtype))[0], call(where, batch)[0])


@pytest.mark.parametrize("label", [-1, 100, 2**40, -(2**40)])
def test_label_outside_the_vocabulary(where, batch, label):
    """Raises on a CPU; on a GPU, which is not waited for, its row is NaN and nothing is read beyond the row."""
    labels = LABELS.clone()
    labels[2] = label
    if where.device == "cpu":
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 100\) or equal ignore_index=-100, got {label}"):
            call(where, batch, labels)
    else:
        values, _ = call(where, batch, labels)
        assert values.isnan().tolist() == [False, False, True, False, False]


def test_label_outside_in_a_row_that_does_not_count(where, batch):
    labels = LABELS.clone()
    labels[2] = 12345
    mask = torch.tensor([True, True, False, True, True])
    values, _ = call(where, batch, labels, mask=mask, alpha=0.3)
    close(values, distillation(kd.ForwardKL(), *batch, LABELS, 0.3, 4.0).values * mask)


def test_label_beyond_vocab_size(where, batch):
    """The labels' range is that of the part that enters."""
    if where.device == "cpu":
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 60\)"):
            call(where, batch, vocab_size=60)
    inside = LABELS.clamp(max=59)
    values, gradient = call(where, batch, inside, alpha=0.3, vocab_size=60)
    answer = distillation(kd.ForwardKL(), batch[0][:, :60], batch[1][:, :60], inside, 0.3, 4.0)
    close(values, answer.values)
    close(gradient[:, :60], answer.gradient)
    assert bool((gradient[:, 60:] == 0).all())


def test_label_on_a_minus_infinity(where, batch):
    """The class that the student rules out: infinite cross-entropy, as in PyTorch; alpha = 1 does not look at it."""
    student = batch[0].clone()
    student[1, LABELS[1]], teacher = -torch.inf, batch[1].clone()
    teacher[1, LABELS[1]] = -torch.inf
    assert call(where, (student, teacher), alpha=0.3)[0].isinf().tolist() == [False, True, False, False, False]
    values, gradient = call(where, (student, teacher), alpha=1.0)
    answer = divergence(kd.ForwardKL(), student, teacher, 4.0)
    close(values, answer.values)
    close(gradient, answer.gradient)


def test_alpha_zero_does_not_look_at_the_teacher(where, batch):
    """Where one weight of a row is 0 its term adds exactly nothing: not NaN either."""
    teacher = batch[1].clone()
    teacher[1], teacher[3, 5] = torch.nan, torch.inf
    alpha = torch.tensor([0.3, 0.0, 0.3, 0.0, 0.3], dtype=F64)
    answer = distillation(kd.ForwardKL(), *batch, LABELS, alpha, 4.0)
    values, gradient = call(where, (batch[0], teacher), alpha=alpha)
    close(values, answer.values)
    close(gradient, answer.gradient)


def test_half_precision_student_with_alpha_per_row(where):
    student, teacher = pair(5, 100, dtype=torch.bfloat16)
    alpha = torch.linspace(0, 1, 5)
    answer = distillation(kd.ForwardKL(), student.detach(), teacher, LABELS, alpha.double(), 4.0)
    values, gradient = call(where, (student.detach(), teacher), alpha=alpha)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.cpu().double(), answer.values, rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(gradient.cpu().double(), answer.gradient, rtol=2**-8, atol=1e-6)
