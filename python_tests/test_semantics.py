"""How rows are reduced, weighted, masked and scaled; and the logits that no formula likes."""

import math

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, pair, value_and_gradient
from oracle import divergence

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
MASK = torch.tensor([True, False, True, True, False])


def close(got, wanted, rtol=1e-5, atol=1e-7):
    torch.testing.assert_close(got.cpu().double(), wanted.cpu().double(), rtol=rtol, atol=atol)


@pytest.fixture
def batch(where):
    student, teacher = pair(5, 100, device=where.device)
    return student, teacher, divergence(kd.ForwardKL(), student.detach().cpu(), teacher.cpu(), 2.0)


def call(where, student, teacher, **options):
    options.setdefault("temperature", 2.0)
    return value_and_gradient(lambda z: kd.divergence(z, teacher, backend=where.backend, **options), student)


def test_reductions(where, batch):
    student, teacher, answer = batch
    for reduction, values, divisor in [
        ("none", answer.values, 1),
        ("sum", answer.values.sum(), 1),
        ("mean", answer.values.mean(), 5),
        ("batchmean", answer.values.sum() / 5, 5),
    ]:
        got, gradient = call(where, student, teacher, reduction=reduction)
        assert got.shape == values.shape
        close(got, values)
        close(gradient, answer.gradient / divisor)


def test_mean_is_the_default_and_of_rows_not_of_batches(where):
    student, teacher = pair(2, 3, 7, device=where.device)
    each = kd.divergence(student, teacher, reduction="none", backend=where.backend)
    assert each.shape == (2, 3)
    close(kd.divergence(student, teacher, backend=where.backend), each.mean())
    close(kd.divergence(student, teacher, reduction="batchmean", backend=where.backend), each.sum() / 2)


@pytest.mark.parametrize("leading", [(), (1,), (0,), (2, 0), (2, 3), (2, 1, 3, 2)], ids=str)
def test_any_leading_shape(where, leading):
    rows = math.prod(leading)
    student, teacher = pair(*leading, 7, device=where.device)
    answer = divergence(kd.ForwardKL(), student.detach().reshape(rows, 7).cpu(), teacher.reshape(rows, 7).cpu(), 2.0)
    values, gradient = call(where, student, teacher, reduction="none")
    assert values.shape == leading
    assert gradient.shape == student.shape
    close(values, answer.values.reshape(leading))
    close(gradient, answer.gradient.reshape(student.shape))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("op", ["divergence", "distillation"])
def test_empty_batch(where, op, reduction):
    student, teacher = pair(0, 7, device=where.device)
    labels = () if op == "divergence" else (torch.zeros(0, dtype=torch.int64, device=where.device),)
    value, gradient = value_and_gradient(
        lambda z: getattr(kd, op)(z, teacher, *labels, reduction=reduction, backend=where.backend), student
    )
    assert value.tolist() == ([] if reduction == "none" else 0.0)
    assert gradient.shape == (0, 7)


def test_temperature_squared(where, batch):
    student, teacher, answer = batch
    with_it, without = (call(where, student, teacher, reduction="none", tau_squared=on) for on in (True, False))
    close(with_it[0], answer.values)
    close(without[0], answer.values / 4)
    close(without[1], answer.gradient / 4)
    default = call(where, student, teacher, reduction="none")
    assert torch.equal(default[0], with_it[0])
    assert torch.equal(default[1], with_it[1])


def test_temperature_may_be_an_integer(where, batch):
    student, teacher, answer = batch
    close(call(where, student, teacher, temperature=2, reduction="none")[0], answer.values)


def test_mask_counts_what_is_true(where, batch):
    student, teacher, answer = batch
    mask = MASK.to(where.device)
    for reduction, divisor in [("none", 1), ("sum", 1), ("mean", 3), ("batchmean", 5)]:
        value, gradient = call(where, student, teacher, mask=mask, reduction=reduction)
        kept = answer.values * MASK
        close(value, kept if reduction == "none" else kept.sum() / divisor)
        close(gradient, answer.gradient * MASK[:, None] / divisor)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_all_masked_is_zero_with_zero_gradients(where, batch, reduction):
    student, teacher, _ = batch
    mask = torch.zeros(5, dtype=torch.bool, device=where.device)
    value, gradient = call(where, student, teacher, mask=mask, reduction=reduction)
    assert bool((value == 0).all())
    assert bool((gradient == 0).all())


@EVERY_LOSS
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("how", ["mask", "weight", "label"])
def test_rows_that_do_not_count_are_not_read(where, loss, poison, how):
    student, teacher = (x.detach().clone() for x in pair(5, 100, device=where.device))
    mask, labels = MASK.to(where.device), torch.arange(5, device=where.device)
    options = {"loss": loss, "temperature": 2.0, "reduction": "sum", "backend": where.backend}
    if how == "label":
        labels[~mask] = -100
    elif how == "mask":
        options["mask"] = mask
    else:
        options["weight"] = mask.float()

    def run(z, teacher):
        return (
            kd.distillation(z, teacher, labels, **options) if how == "label" else kd.divergence(z, teacher, **options)
        )

    clean = value_and_gradient(lambda z: run(z, teacher), student)
    student[~mask], teacher[~mask] = poison, poison
    dirty = value_and_gradient(lambda z: run(z, teacher), student)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert bool((dirty[1][~mask] == 0).all())


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=name_of)
def test_weight_multiplies_rows_and_not_the_divisor(where, batch, dtype):
    student, teacher, answer = batch
    weight = torch.tensor([0.5, 2.0, 0.0, -1.0, 3.0], dtype=dtype)
    for reduction, divisor in [("none", 1), ("sum", 1), ("mean", 5), ("batchmean", 5)]:
        value, gradient = call(where, student, teacher, weight=weight.to(where.device), reduction=reduction)
        weighted = answer.times(weight.double())
        close(value, weighted.values if reduction == "none" else weighted.values.sum() / divisor)
        close(gradient, weighted.gradient / divisor)


def test_weight_and_mask_together(where, batch):
    student, teacher, answer = batch
    weight = torch.tensor([0.5, 2.0, 0.25, -1.0, 3.0])
    value, gradient = call(where, student, teacher, weight=weight.to(where.device), mask=MASK.to(where.device))
    weighted = answer.times(weight.double() * MASK / 3)
    close(value, weighted.values.sum())
    close(gradient, weighted.gradient)


@pytest.mark.parametrize(
    "as_tensor", [float, torch.tensor, lambda x: torch.tensor(int(x)), lambda x: torch.tensor(x).double()]
)
def test_normalizer_replaces_the_divisor_of_the_mean(where, batch, as_tensor):
    student, teacher, answer = batch
    value, gradient = call(where, student, teacher, mask=MASK.to(where.device), normalizer=as_tensor(12.0))
    close(value, (answer.values * MASK).sum() / 12)
    close(gradient, answer.gradient * MASK[:, None] / 12)


@EVERY_LOSS
def test_vocab_size_cuts_both_and_leaves_the_rest_without_gradient(where, loss):
    student, teacher = logits(3, 130, device=where.device), logits(3, 111, device=where.device, seed=1)
    student[:, 100:], teacher[:, 100:] = math.nan, 1e30  # what padding may hold
    answer = divergence(loss, student[:, :100].cpu(), teacher[:, :100].cpu(), 2.0)
    value, gradient = call(where, student, teacher, loss=loss, vocab_size=100, reduction="none")
    close(value, answer.values, atol=1e-6)
    close(gradient[:, :100], answer.gradient)
    assert bool((gradient[:, 100:] == 0).all())
    assert gradient.shape == student.shape


def test_values_are_float32_or_float64(where):
    for student_dtype, teacher_dtype, wanted in [(BF16, BF16, F32), (F16, F32, F32), (F32, F64, F64), (F64, BF16, F64)]:
        student = logits(2, 7, dtype=student_dtype, device=where.device)
        teacher = logits(2, 7, dtype=teacher_dtype, device=where.device)
        for reduction in ("none", "sum", "mean", "batchmean"):
            value, gradient = call(where, student, teacher, reduction=reduction)
            assert value.dtype == wanted
            assert gradient.dtype == student_dtype


def test_nothing_that_came_in_is_changed(where, batch):
    student, teacher, _ = batch
    extra = {"weight": torch.rand(5, device=where.device), "mask": MASK.to(where.device)}
    everything = [student, teacher, *extra.values()]
    before = [x.detach().clone() for x in everything]
    kd.divergence(student, teacher, backend=where.backend, **extra).backward()
    assert all(torch.equal(x.detach(), y) for x, y in zip(everything, before, strict=True))
