"""Values and gradients of every loss, backend, instruction set, dtype and shape against float64."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from cases import ALL_LOSSES, BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, on, per_class, value_and_gradient
from oracle import distillation, divergence, eager
from tolerance import arithmetic, check_gradient, check_values, scale

import kdkernels as kd

SHAPES = [
    (3, 1),  # one class: everything is 0, and every vector loop is all tail
    (3, 2),  # binary
    (3, 7),  # below any vector width
    (3, 100),  # a few vectors and a tail
    (1, 1000),  # one row: no parallelism over rows
    (3, 1000),  # a multiple of 8 and not of 16
    (3, 1271),  # 31 * 41: odd, so that rows are not aligned to anything
]
LARGE = [
    (289, 1000),  # 17 * 17 rows: more than threads, and no multiple of a block of them
    (3, 32000),  # Llama 2's vocabulary: a row no longer fits a first-level cache or a GPU's registers
    (1, 128256),  # Llama 3's: a multiple of 256 only; a row is streamed
]
DTYPES = [
    (F32, F32),
    (BF16, BF16),
    (F16, F16),
    (F64, F64),
    (BF16, F32),  # a teacher's logits cached in full precision
    (F32, BF16),  # a master student and a half-precision teacher
    (F16, BF16),  # two halves that promote to neither
    (F64, F32),
    (F16, F64),
]
TEMPERATURE = 2.0


@lru_cache(maxsize=256)
def inputs(shape, dtypes):
    rows, vocab = shape
    student, teacher = (logits(rows, vocab, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes))
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(5))
    return student, teacher, labels


@lru_cache(maxsize=512)
def answers(loss, shape, dtypes, device):
    """(float64, eager PyTorch on the device, what rounding is measured by), shared by all backends."""
    student, teacher, _ = inputs(shape, dtypes)
    return (
        divergence(loss, student, teacher, TEMPERATURE),
        eager(loss, student, teacher, TEMPERATURE, device=device),
        scale(student, teacher, TEMPERATURE, loss),
    )


def check_divergence(target, loss, shape, dtypes):
    student, teacher, _ = inputs(shape, dtypes)
    answer, peer, size = answers(loss, shape, dtypes, target.device)
    options = {"temperature": TEMPERATURE, "backend": target.backend}
    student, teacher = student.to(target.device), teacher.to(target.device)
    compute = arithmetic(student, teacher)
    values, each = value_and_gradient(lambda z: kd.divergence(z, teacher, loss, reduction="none", **options), student)
    total, gradient = value_and_gradient(lambda z: kd.divergence(z, teacher, loss, reduction="sum", **options), student)
    with torch.no_grad():
        alone = kd.divergence(student, teacher, loss, reduction="none", **options)
    assert gradient.dtype == student.dtype
    check_values(values, answer, peer, size, compute)
    check_values(alone, answer, peer, size, compute)
    sums = (replace(each, values=each.values.sum()[None]) for each in (answer, peer, size))
    check_values(total[None], *sums, compute)
    check_gradient(gradient, answer, peer, size, compute)
    check_gradient(each, answer, peer, size, compute)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
def test_small_shapes(target, loss, dtypes, shape):
    check_divergence(target, loss, shape, dtypes)


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16)], ids=lambda pair: name_of(pair[0]))
@pytest.mark.parametrize("loss", ALL_LOSSES[len(DEFAULT_LOSSES) :], ids=name_of)
def test_other_parameters(target, loss, dtypes):
    check_divergence(target, loss, (3, 1271), dtypes)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16)], ids=lambda pair: name_of(pair[0]))
@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
def test_large_shapes(target, loss, dtypes, shape):
    check_divergence(target, loss, shape, dtypes)


@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (3, 1271), (1, 128256)], ids=str)
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F16, F16), (F64, F64)], ids=lambda pair: name_of(pair[0]))
@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
def test_distillation(target, loss, dtypes, shape):
    check_distillation(target, loss, shape, dtypes)


@pytest.mark.parametrize("vocab", [1, 2, 7, 100, 113, 1000, 1271])  # none a multiple of the 16 of the table's padding
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F16, F16), (F64, F64)], ids=lambda pair: name_of(pair[0]))
def test_coefficients_per_class(target, dtypes, vocab):
    loss = on(target.device, per_class(vocab, orders=1 + vocab % 8))
    check_divergence(target, loss, (19, vocab), dtypes)  # sixteen rows to a vector where they are short, and a tail
    check_distillation(target, loss, (19, vocab), dtypes)


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16)], ids=lambda pair: name_of(pair[0]))
def test_coefficients_per_class_of_a_large_vocabulary(target, dtypes):
    check_divergence(target, on(target.device, per_class(128256)), (1, 128256), dtypes)


def check_distillation(target, loss, shape, dtypes):
    student, teacher, labels = inputs(shape, dtypes)
    answer = distillation(loss, student, teacher, labels, 0.3, TEMPERATURE)
    peer = eager(loss, student, teacher, TEMPERATURE, labels, 0.3, target.device)
    size = scale(student, teacher, TEMPERATURE, loss).times(0.3).plus(scale(student, student).times(0.7))
    size.gradient[torch.arange(shape[0]), labels] += 0.7  # the label's element rounds the 1 that it subtracts
    student, teacher, labels = student.to(target.device), teacher.to(target.device), labels.to(target.device)
    compute = arithmetic(student, teacher)
    for reduction in ("none", "sum"):

        def call(z, reduction=reduction):
            return kd.distillation(
                z,
                teacher,
                labels,
                loss,
                alpha=0.3,
                temperature=TEMPERATURE,
                reduction=reduction,
                backend=target.backend,
            )

        values, gradient = value_and_gradient(call, student)
        if reduction == "none":
            check_values(values, answer, peer, size, compute)
        check_gradient(gradient, answer, peer, size, compute)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 32000)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_softmax(target, log, dtype, shape):
    student, _, _ = inputs(shape, (dtype, dtype))
    upstream = logits(*shape, dtype=dtype, seed=9)
    z = student.double().requires_grad_()
    wanted = ((z / TEMPERATURE).log_softmax if log else (z / TEMPERATURE).softmax)(-1)
    (slope,) = torch.autograd.grad(wanted, z, upstream.double())
    leaf = student.to(target.device).requires_grad_()
    got = (kd.log_softmax if log else kd.softmax)(leaf, temperature=TEMPERATURE, backend=target.backend)
    (gradient,) = torch.autograd.grad(got, leaf, upstream.to(target.device))
    assert got.dtype == gradient.dtype == dtype
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    wanted, got = wanted.detach(), got.detach().cpu().double()
    arithmetic_eps = eps if dtype == F64 else 2**-23
    # Half a unit of what is stored, and six roundings of the arithmetic in the logarithm.
    log_error = 6 * arithmetic_eps * (1 + wanted.abs() if log else 1 - wanted.log())
    assert bool(((got - wanted).abs() <= 0.5 * eps * wanted.abs() + log_error * (1 if log else wanted) + tiny).all())
    # The backward works from the stored output: its rounding enters the gradient at full size.
    size = upstream.double().abs() + upstream.double().abs().sum(-1, keepdim=True) * wanted.exp() if log else wanted
    size = (
        size if log else wanted * (upstream.double().abs() + (upstream.double().abs() * wanted).sum(-1, keepdim=True))
    )
    stored = eps * (wanted.abs() if log else 1) + log_error
    error = (gradient.cpu().double() - slope).abs()
    limit = (2 * stored + eps) * size / TEMPERATURE + (shape[-1] + 1) * tiny
    assert bool((error <= limit).all()), f"{float((error - limit).max()):.3g} beyond the limit"
