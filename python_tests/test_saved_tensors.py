"""Hooks on saved tensors that hand back something else than they were given, and tensors whose memory is gone."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of
from test_checkpointing import DTYPES, OPS, ROWS, VOCAB, given, op, outside  # noqa: F401 - fixtures
from torch.autograd.graph import saved_tensors_hooks

import kdkernels as kd


def last_two_swapped(tensor):
    return tensor.transpose(-1, -2).contiguous() if tensor.dim() > 1 else tensor


def swapped_back(tensor):
    return tensor.transpose(-1, -2) if tensor.dim() > 1 else tensor


def spread(tensor):
    """Every second element of its memory is the tensor's."""
    return torch.stack([tensor, tensor], -1)


LAYOUTS = {
    "transposed": (last_two_swapped, swapped_back),
    "with steps": (spread, lambda tensor: tensor[..., 0]),
    "backwards": (lambda tensor: tensor.flip(0), lambda tensor: tensor.flip(0)),
    "negated": (torch.neg, torch._neg_view),
}


@DTYPES
@pytest.mark.parametrize("how", LAYOUTS)
def test_another_layout_is_the_same_gradient(op, given, dtype, how):  # noqa: F811
    _, gradient, upstream = outside(op, given)
    with saved_tensors_hooks(*LAYOUTS[how]):
        got = op(*given)
    assert torch.equal(torch.autograd.grad(got, given[0], upstream)[0], gradient)


def floats_to(dtype):
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


@DTYPES
@pytest.mark.parametrize("kept", [F64, BF16], ids=name_of)
def test_another_floating_dtype_is_converted_back(op, given, dtype, kept):  # noqa: F811
    """float64 keeps every number, so the gradient is the same; bfloat16 rounds what was saved, and nothing more."""
    _, gradient, upstream = outside(op, given)
    with saved_tensors_hooks(floats_to(kept), lambda tensor: tensor):
        got = op(*given)
    found = torch.autograd.grad(got, given[0], upstream)[0]
    if kept == F64:
        assert torch.equal(found, gradient)
    else:
        assert (found - gradient).abs().max() <= 0.1 * gradient.abs().max() + 0.02


WRONG = {
    "another shape": lambda tensor: tensor.unsqueeze(0).expand(2, *tensor.shape),
    "fewer rows": lambda tensor: tensor[:1],
    "whole numbers": lambda tensor: (100 * tensor).int(),
    "another layout": lambda tensor: tensor.to_sparse(),
    "another device": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
@pytest.mark.parametrize("how", WRONG)
def test_anything_else_is_an_error(op, given, dtype, how):  # noqa: F811
    _, _, upstream = outside(op, given)
    with saved_tensors_hooks(WRONG[how], lambda tensor: tensor):
        got = op(*given)
    ours = "a hook on saved tensors must hand back what it was given, here torch.*got"
    with pytest.raises(
        RuntimeError, match=f"{ours}|floating point .* can require gradients"
    ):  # the second is PyTorch's
        torch.autograd.grad(got, given[0], upstream)


def test_labels_are_not_rounded(kernel):
    """Labels of 300 would come back from bfloat16 as 300 or 302: no class is guessed."""
    student = logits(3, 400, dtype=F16, device=kernel.device).requires_grad_()
    labels = torch.tensor([257, 259, 301], device=kernel.device)
    with saved_tensors_hooks(lambda tensor: tensor.bfloat16(), lambda tensor: tensor):
        value = kd.distillation(student, student.detach(), labels, backend=kernel.backend)
    with pytest.raises(RuntimeError, match="here torch.int64 of shape .* got torch.bfloat16"):
        value.backward()


def freed(*shape, dtype=F32, device="cpu"):
    tensor = torch.ones(*shape, dtype=dtype, device=device)
    tensor.untyped_storage().resize_(0)
    return tensor


CALLS = {
    "student": lambda z, t, y, **how: kd.divergence(freed(*z.shape, device=z.device), t, **how),
    "teacher": lambda z, t, y, **how: kd.divergence(z, freed(*t.shape, device=z.device), **how),
    "weight": lambda z, t, y, **how: kd.divergence(z, t, weight=freed(ROWS, device=z.device), **how),
    "softmax": lambda z, t, y, **how: kd.softmax(freed(*z.shape, device=z.device), **how),
    "class_mean": lambda z, t, y, **how: kd.trilateral_distances(z, t, y, freed(VOCAB, VOCAB, device=z.device), **how),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_whose_memory_is_gone_is_not_taken_for_none(call, kernel):
    """Freed, as FSDP frees parameters: an address of 0 is not the absence of a weight or a class mean."""
    student, teacher = logits(ROWS, VOCAB, device=kernel.device), logits(ROWS, VOCAB, seed=1, device=kernel.device)
    with pytest.raises(ValueError, match="has no memory"):
        CALLS[call](student, teacher, torch.arange(ROWS, device=kernel.device), backend=kernel.backend)


def test_a_gradient_whose_memory_is_gone(kernel):
    student = logits(ROWS, VOCAB, device=kernel.device).requires_grad_()
    with saved_tensors_hooks(lambda tensor: freed(*tensor.shape, device=tensor.device), lambda tensor: tensor):
        value = kd.divergence(student, student.detach(), reduction="none", backend=kernel.backend)
    with pytest.raises(ValueError, match="has no memory"):
        value.sum().mul(2.0).backward()
