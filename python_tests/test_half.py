"""Half precision in training: loss scales, big batches, autocast."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, logits, name_of, pair, value_and_gradient
from oracle import distillation, divergence, eager

import kdkernels as kd

EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)


def relative(got, wanted):
    return float((got.cpu().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("op", ["divergence", "distillation"])
@pytest.mark.parametrize("reduction", ["mean", "none", "normalizer"])
def test_float16_gradients_survive_a_big_batch_with_a_loss_scale(where, op, reduction):
    """Divided by the rows first, most elements would be among float16's subnormals; the scale comes too late."""
    rows, vocab, scale = 8192, 128, 65536.0
    student, teacher = pair(rows, vocab, dtype=F16, device=where.device)
    z, t = student.detach().cpu(), teacher.cpu()
    labels = torch.arange(rows) % vocab
    if op == "divergence":
        answer, arguments, options = divergence(kd.ForwardKL(), z, t, 2.0), (teacher,), {}
    else:
        answer, options = distillation(kd.ForwardKL(), z, t, labels, 0.5, 2.0), {"alpha": 0.5}
        arguments = (teacher, labels.to(where.device))
    divisor = rows
    if reduction == "normalizer":  # the tokens of a whole accumulated batch
        reduction, divisor = "mean", 64 * rows
        options["normalizer"] = divisor
    wanted = answer.gradient * (scale / divisor)
    rounded_too_early = (answer.gradient / divisor).to(F16).double() * scale
    assert relative(rounded_too_early, wanted) > 2e-3  # the trap is there
    value = getattr(kd, op)(student, *arguments, temperature=2.0, reduction=reduction, backend=where.backend, **options)
    (scale * value).mean().backward() if reduction == "none" else (scale * value).backward()
    assert student.grad.dtype == F16
    assert relative(student.grad, wanted) < 5e-4


def test_float16_upstream_that_overflows_is_infinite_and_not_wrong(where):
    """A loss scale that is too large has to show as inf, which GradScaler looks for, and not as a large number."""
    student, teacher = pair(1, 4, dtype=F16, device=where.device)
    (2.0**40 * kd.divergence(student, teacher, reduction="sum", backend=where.backend)).backward()
    assert bool(student.grad.isinf().any())


def test_a_gradient_scaler_s_step(where):
    """GradScaler end to end: the weights move as in float32."""
    x, w = logits(256, 16, device=where.device), logits(16, 100, device=where.device, seed=1, spread=0.3)
    teacher = logits(256, 100, device=where.device, seed=2)

    def step(dtype):
        weight = torch.nn.Parameter(w.clone())
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler = torch.amp.GradScaler(where.device, init_scale=65536.0, enabled=dtype == F16)
        loss = kd.divergence(
            (x.to(dtype) @ weight.to(dtype)), teacher.to(dtype), temperature=2.0, backend=where.backend
        )
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return weight.detach() - w

    assert relative(step(F16), step(F32).cpu().double()) < 5e-3


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [BF16, F16], ids=name_of)
def test_autocast_changes_nothing_in_a_loss(where, loss, dtype):
    """Autocast casts what feeds the loss; the loss itself stays in float32."""
    student, teacher = pair(5, 100, device=where.device)

    def run(enabled):
        with torch.autocast(where.device, dtype=dtype, enabled=enabled):
            return value_and_gradient(
                lambda z: kd.divergence(z, teacher, loss, temperature=2.0, backend=where.backend), student
            )

    for inside, outside in zip(run(True), run(False), strict=True):
        assert inside.dtype == outside.dtype == F32
        assert torch.equal(inside, outside)


@pytest.mark.parametrize("op", ["divergence", "distillation", "softmax"])
def test_autocast_train_step(where, op):
    """bfloat16 logits from an autocast head, backward outside: gradients arrive in the parameters' float32."""
    x, teacher = logits(6, 16, device=where.device), logits(6, 100, device=where.device, seed=2)
    head = torch.nn.Linear(16, 100, device=where.device)
    labels = torch.arange(6, device=where.device)
    with torch.autocast(where.device, dtype=BF16):
        z = head(x)
        assert z.dtype == BF16
        if op == "softmax":
            loss = kd.softmax(z, backend=where.backend).float().square().sum()
        else:
            extra = (labels,) if op == "distillation" else ()
            loss = getattr(kd, op)(z, teacher, *extra, temperature=2.0, backend=where.backend)
    assert loss.dtype == F32
    loss.backward()
    assert head.weight.grad.dtype == F32
    if op == "divergence":
        answer = divergence(kd.ForwardKL(), z.detach().cpu(), teacher.cpu(), 2.0)
        wanted = (answer.gradient / 6).T @ x.cpu().double()
        assert relative(head.weight.grad, wanted) < 5e-3


@EVERY_LOSS
def test_half_precision_close_to_the_teacher(where, loss):
    """Late in training q is nearly p: q - p must be taken in float32, of float32 probabilities."""
    teacher = logits(64, 1000, dtype=BF16)
    student = (teacher.float() * (1 + 2.0**-7 * logits(64, 1000, seed=1).sign())).to(BF16)
    answer = divergence(loss, student, teacher)
    values, gradient = value_and_gradient(
        lambda z: kd.divergence(z, teacher.to(where.device), loss, reduction="none", backend=where.backend),
        student.to(where.device),
    )
    # The reference is eager PyTorch in float32, whose rounded logarithms may leave it further off.
    peer = (eager(loss, student, teacher, device=where.device).values - answer.values).abs()
    error = (values.cpu().double() - answer.values).abs()
    assert bool((error <= peer + 2e-7 + 1e-3 * answer.values.abs()).all()), float(error.max())
    undecided = torch.as_tensor(answer.slack).norm() / answer.gradient.norm()
    assert relative(gradient, answer.gradient) < 3e-3 + float(undecided)
