"""The logits, and what has to fit to them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.reference import accumulation_dtype
from ..losses import Loss
from . import memory, settings

LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def logits(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of logits, got {type(tensor).__name__}")
    if tensor.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        memory.dense(name, tensor)
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., vocab) with vocab >= 1, got {tuple(tensor.shape)}")


def pair(student: Tensor, teacher: Tensor, vocab_size: int | None) -> int:
    """Check the two logits against each other; the number of columns that count."""
    logits("student", student)
    logits("teacher", teacher)
    if teacher.requires_grad:
        raise ValueError("teacher must not require grad (no gradient flows into it): pass teacher.detach()")
    if type(teacher) is not Tensor:
        memory.companion("teacher", teacher, student)
    if student.device != teacher.device:
        raise ValueError(f"teacher must be on the student's device {student.device}, got {teacher.device}")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"teacher must have the shape of student {tuple(student.shape)}, got {tuple(teacher.shape)}")
    columns = student.shape[-1]
    if vocab_size is None:
        if columns != teacher.shape[-1]:
            raise ValueError(
                f"teacher must have the shape of student {tuple(student.shape)}, got {tuple(teacher.shape)}; where "
                "only the first entries of both vocabularies correspond, say how many with vocab_size="
            )
        return columns
    vocab_size = settings.integer("vocab_size", vocab_size)
    smaller = min(columns, teacher.shape[-1])
    if not 1 <= vocab_size <= smaller:
        raise ValueError(
            f"vocab_size must lie in [1, {smaller}], the smaller of the two vocabularies, got {vocab_size}"
        )
    return vocab_size


def loss(value: object) -> None:
    if not isinstance(value, Loss):
        hint = ", an instance and not the class" if isinstance(value, type) else ""
        came = f"{value!r}" if isinstance(value, (type, str)) else type(value).__name__
        raise TypeError(f"loss must be a kdkernels loss such as ForwardKL(){hint}, got {came}")


def loss_fits(value: Loss, student: Tensor, teacher: Tensor, vocab: int) -> Tensor | None:
    """Check a loss's table of parameters against the logits; the table in the dtype of their arithmetic."""
    if value.classes not in (None, vocab):
        raise ValueError(
            f"{type(value).__name__}'s coefficients must have one row per class, {vocab} of them, got {value.classes}"
        )
    table = value.table(accumulation_dtype(student, teacher))
    if table is not None and table.device != student.device:
        raise ValueError(
            f"{type(value).__name__}'s coefficients must be on the student's device {student.device}, got "
            f"{table.device}"
        )
    return table


def class_mean(value: object, student: Tensor, vocab: int) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"class_mean must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in LOGIT_DTYPES:
        raise TypeError(f"class_mean must be float32, float16, bfloat16 or float64, got {value.dtype}")
    memory.companion("class_mean", value, student)
    memory.dense("class_mean", value)
    if tuple(value.shape) != (vocab, vocab):
        raise ValueError(f"class_mean must have shape (C, C) = {(vocab, vocab)}, got {tuple(value.shape)}")
    if value.device != student.device:
        raise ValueError(f"class_mean must be on the student's device {student.device}, got {value.device}")
    settings.constant("class_mean", value)
