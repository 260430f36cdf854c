"""Labels of every integer dtype, constants made elsewhere, and long runs of equal terms: what users bring along."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

import kdkernels as kd
from kdkernels.methods import pt, tgeo


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_teacher_from_inference_mode(where):
    student, labels = logits(4, 200).to(where.device).requires_grad_(), torch.arange(4, device=where.device)
    with torch.inference_mode():
        teacher = logits(4, 200, seed=1).to(where.device)
        mean = torch.full((200, 200), 1 / 200, device=where.device)
    distances = kd.trilateral_distances(student, teacher, labels, mean, backend=where.backend)
    (got,) = torch.autograd.grad(distances.sum(), student)
    again = kd.trilateral_distances(student, teacher.clone(), labels, mean.clone(), backend=where.backend)
    assert torch.equal(got, torch.autograd.grad(again.sum(), student)[0])


def test_a_loss_made_in_inference_mode(where):
    student, teacher = logits(3, 7).to(where.device).requires_grad_(), logits(3, 7, seed=1).to(where.device)
    with torch.inference_mode():
        loss = kd.Perturbed(torch.tensor([1.0, 2.0], device=where.device))
    kd.divergence(student, teacher, loss, backend=where.backend).backward()
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8, torch.int16, torch.int32), ids=str)
def test_labels_of_small_dtypes_are_what_they_say(dtype):
    most = 120 if dtype == torch.int8 else 250
    labels = torch.tensor([0, 5, 50, 100, most, 44])
    quality = [pt.quality(logits(6, 300).softmax(-1), each) for each in (labels, labels.to(dtype))]
    assert torch.equal(*quality)


def test_a_class_that_minus_a_hundred_wraps_to_is_counted():
    """-100 is 156 in uint8."""
    student, inputs, teacher = torch.nn.Linear(5, 200), logits(6, 5), logits(6, 200, seed=1)
    labels = torch.tensor([156, 156, 156, 1, 2, 3])

    def gradient(dtype):
        given = labels.to(dtype)
        alpha = torch.full((6,), 0.5)
        return tgeo.hypergradient(
            student, alpha, (inputs, teacher, given), (inputs, given), inner_lr=0.1, temperature=2.0
        )

    torch.testing.assert_close(gradient(torch.uint8), gradient(torch.int64))


@pytest.mark.parametrize("vocab", (16, 100, 192, 193, 1000))
def test_equal_logits_do_not_add_up_their_rounding(where, vocab):
    """A head of zeros: all terms of a sum round alike."""
    zeros, labels = torch.zeros(64, vocab, device=where.device), torch.arange(64, device=where.device) % vocab
    squares = kd.trilateral_distances(zeros, zeros, labels, squared=True, backend=where.backend)
    expected = (1 - 1 / vocab) ** 2 + (vocab - 1) / vocab**2
    torch.testing.assert_close(squares[:, 0].double().cpu(), torch.full((64,), expected).double(), rtol=1e-6, atol=0)


def test_per_sample_gradients_of_distances():
    student, teacher, labels = logits(5, 9), logits(5, 9, seed=1), torch.arange(5)
    each = vmap(grad(lambda s, t, y: kd.trilateral_distances(s, t, y).sum()))(student, teacher, labels)
    leaf = student.clone().requires_grad_()
    kd.trilateral_distances(leaf, teacher, labels, backend="reference").sum().backward()
    torch.testing.assert_close(each, leaf.grad)


@pytest.mark.parametrize("wrong", (None, "x", 1.5, True))
def test_ignore_index_is_an_int(wrong):
    student, labels = logits(2, 3), torch.zeros(2).long()
    for call in (kd.distillation, kd.trilateral_distances):
        with pytest.raises(TypeError, match="ignore_index must be an int, got"):
            call(student, student, labels, ignore_index=wrong)


def test_a_count_of_no_tokens_is_no_nan(where):
    student, teacher = logits(3, 5).to(where.device).requires_grad_(), logits(3, 5, seed=1).to(where.device)
    nothing = torch.zeros(3, dtype=torch.bool, device=where.device)
    normalizer = torch.zeros((), dtype=torch.long, device=where.device)
    value = kd.divergence(student, teacher, mask=nothing, normalizer=normalizer, backend=where.backend)
    value.backward()
    assert value == 0 and (student.grad == 0).all()
