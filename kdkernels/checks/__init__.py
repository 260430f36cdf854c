"""Every check of what users pass and every message: argument, rule, what came; all before anything is launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..backends import traced, transformed
from ..backends.reference import accumulation_dtype
from ..losses import Loss
from ..rows import separate

REDUCTIONS = ("none", "sum", "mean", "batchmean")
_SMALLEST_TEMPERATURE = 1e-37  # it and its reciprocal are normal float32 numbers
LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def logits(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of logits, got {type(tensor).__name__}")
    if tensor.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., vocab) with vocab >= 1, got {tuple(tensor.shape)}")


def pair(student: Tensor, teacher: Tensor, vocab_size: int | None) -> int:
    """Check the two logits against each other; the number of columns that count."""
    logits("student", student)
    logits("teacher", teacher)
    if teacher.requires_grad:
        raise ValueError("teacher must not require grad (no gradient flows into it): pass teacher.detach()")
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
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise TypeError(f"vocab_size must be an int, got {type(vocab_size).__name__}")
    smaller = min(columns, teacher.shape[-1])
    if not 1 <= vocab_size <= smaller:
        raise ValueError(
            f"vocab_size must lie in [1, {smaller}], the smaller of the two vocabularies, got {vocab_size}"
        )
    return vocab_size


def loss(value: object) -> None:
    if not isinstance(value, Loss):
        hint = ", an instance and not the class" if isinstance(value, type) else ""
        raise TypeError(f"loss must be a kdkernels loss such as ForwardKL(){hint}, got {value!r}")


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
    if value.layout is not torch.strided:
        raise TypeError(f"class_mean must be a dense tensor, got layout {value.layout}")
    if tuple(value.shape) != (vocab, vocab):
        raise ValueError(f"class_mean must have shape (C, C) = {(vocab, vocab)}, got {tuple(value.shape)}")
    if value.device != student.device:
        raise ValueError(f"class_mean must be on the student's device {student.device}, got {value.device}")
    _constant("class_mean", value)


def temperature(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"temperature must be a number, got {type(value).__name__}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")
    if not _SMALLEST_TEMPERATURE <= value <= 1.0 / _SMALLEST_TEMPERATURE:
        raise ValueError(f"temperature must lie in [1e-37, 1e37], where float32 holds its reciprocal, got {value}")


def reduction(value: str, normalizer: object) -> None:
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {value!r}")
    if normalizer is None:
        return
    if value != "mean":
        raise ValueError(f"normalizer replaces the divisor of reduction='mean'; it cannot go with {value!r}")
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer must be a number or a 0-d tensor, got shape {tuple(normalizer.shape)}")
        if normalizer.dtype == torch.bool or normalizer.is_complex():
            raise TypeError(f"normalizer must be a number or a 0-d tensor of one, got {normalizer.dtype}")
        _constant("normalizer", normalizer)
    elif isinstance(normalizer, bool) or not isinstance(normalizer, (int, float)):
        raise TypeError(f"normalizer must be a number or a 0-d tensor, got {type(normalizer).__name__}")
    elif not 0.0 < normalizer < math.inf:
        raise ValueError(f"normalizer must be positive and finite, got {normalizer}")


def mask(value: Tensor | None, student: Tensor) -> None:
    if value is None:
        return
    _per_row("mask", value, student)
    if value.dtype != torch.bool:
        raise TypeError(f"mask must be boolean (True = counted), got {value.dtype}")


def weight(value: Tensor | None, student: Tensor) -> None:
    if value is None:
        return
    _per_row("weight", value, student)
    _real("weight", value)
    _constant("weight", value)


def alpha(value: object, student: Tensor) -> None:
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"alpha must be a number or one value per row, got {type(value).__name__}")
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {value}")
        return
    if value.dim() != 0:
        _per_row("alpha", value, student)
    _real("alpha", value)
    _constant("alpha", value)


def labels(value: Tensor, student: Tensor) -> None:
    _per_row("labels", value, student)
    if value.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"labels must be integers (int64), got {value.dtype}")


def ignore_index(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"ignore_index must be an int, got {type(value).__name__}")


def readable(value: Tensor) -> bool:
    """Whether a tensor's values may be looked at: on a device that would wait for it, and a tracer has none."""
    return value.is_cpu and not traced(value) and not transformed()


def counted_labels(value: Tensor, mask: Tensor | None, vocab: int, ignore_index: int) -> Tensor | None:
    """Check labels (rows,); which rows count, or None where it is known without asking a device that all of them do."""
    if mask is None and _all_classes(value, vocab, ignore_index):
        return None
    counted = value != ignore_index
    if mask is not None:
        counted = counted & mask.reshape(-1)
    label_range(value, counted, vocab, ignore_index)
    return counted


def _all_classes(value: Tensor, vocab: int, ignore_index: int) -> bool:
    """Whether it is known, in one look at labels that can be read, that every one is a class and none is ignored."""
    if not value.numel() or not readable(value):
        return False
    least, largest = torch.aminmax(value)
    low, high = least.item(), largest.item()
    return low >= 0 and high < vocab and not low <= ignore_index <= high


def label_range(value: Tensor, counted: Tensor, vocab: int, ignore_index: int) -> None:
    """Raise where a counted row's label is no class, if the labels can be read."""
    if not readable(value):
        return
    wrong = counted & ((value < 0) | (value >= vocab))
    if bool(wrong.any()):
        first = int(value[wrong][0])
        raise ValueError(f"labels must lie in [0, {vocab}) or equal ignore_index={ignore_index}, got {first}")


def inplace(student: Tensor) -> None:
    """Whether the gradient may take this buffer, said before anything is written."""
    root = student._base if student._is_view() else student
    if root.requires_grad and root.is_leaf and torch.is_grad_enabled():
        raise ValueError("inplace=True needs logits that some operation computed, got a leaf that requires grad")
    if not separate(student):
        shape, strides = tuple(student.shape), tuple(student.stride())
        raise ValueError(
            "inplace=True needs rows that are contiguous, do not overlap and are evenly spaced in memory, "
            f"got shape {shape} with strides {strides}"
        )
    creation = getattr(torch._C._autograd, "_get_creation_meta", None)
    if creation and student._is_view() and creation(student) != torch._C._autograd.CreationMeta.DEFAULT:
        raise ValueError(
            "inplace=True cannot take a view that autograd does not follow (from chunk, split, unbind, a custom "
            "Function, or made under no_grad): pass the tensor that it is a view of, or a clone"
        )


def _per_row(name: str, value: object, student: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.shape != student.shape[:-1]:
        raise ValueError(
            f"{name} must have one value per row, shape {tuple(student.shape[:-1])}, got {tuple(value.shape)}"
        )
    if value.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {value.device}")


def _real(name: str, value: Tensor) -> None:
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def _constant(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ValueError(f"{name} must not require grad (it is a constant of the loss): pass {name}.detach()")
