"""What has one value per row: labels, mask, weight, alpha."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import memory, settings
from .memory import readable


def mask(value: Tensor | None, student: Tensor) -> None:
    if value is None:
        return
    _per_row("mask", value, student)
    if value.dtype != torch.bool:
        raise TypeError(f"mask must be boolean (True = counted), got {value.dtype}: pass mask.bool()")


def weight(value: Tensor | None, student: Tensor) -> None:
    if value is None:
        return
    _per_row("weight", value, student)
    _real("weight", value)
    settings.constant("weight", value)


def alpha(value: object, student: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return settings.share(value)
    if value.dim() != 0:
        _per_row("alpha", value, student)
    else:
        memory.companion("alpha", value, student)
    settings.has_value("alpha", value, student)
    _real("alpha", value)
    settings.constant("alpha", value)
    if value.numel() and readable(value):
        outside = value[~((value >= 0) & (value <= 1))]
        if outside.numel():
            raise ValueError(f"alpha must lie in [0, 1], got {float(outside[0])}")
    return value


def labels(value: Tensor, student: Tensor) -> None:
    _per_row("labels", value, student)
    if value.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"labels must be integers (int64), got {value.dtype}: pass labels.long()")


def counted_labels(value: Tensor, mask: Tensor | None, vocab: int, ignore_index: int) -> Tensor | None:
    """Check labels (rows,); which rows count, or None where it is known without asking a device that all of them do."""
    if mask is None and _all_classes(value, vocab, ignore_index):
        return None
    counted = value != ignore_index
    if mask is not None:
        counted = counted & (mask if mask.dim() == 1 else mask.reshape(-1))
    label_range(value, counted, vocab, ignore_index)
    return counted


def nothing_counted(normalizer: float | Tensor, counted: Tensor | None, student: Tensor) -> None:
    """A divisor of 0 is the count of no row: there must be none that counts, if that can be read."""
    if student.numel() and (counted is None or (readable(counted) and bool(counted.any()))):
        came = normalizer.item() if isinstance(normalizer, Tensor) else normalizer
        raise ValueError(f"normalizer must be positive and finite, got {came} while rows are counted")


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


def _per_row(name: str, value: object, student: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    memory.companion(name, value, student)
    memory.dense(name, value)
    if value.shape != student.shape[:-1]:
        rows, shape = tuple(student.shape[:-1]), tuple(value.shape)
        remedy = ""
        if name == "labels" and value.shape == student.shape:
            remedy = ": for one-hot rows or probabilities pass labels.argmax(-1)"
        elif value.numel() == math.prod(rows):
            remedy = f": pass {name}.reshape{rows}"
        raise ValueError(f"{name} must have one value per row, shape {rows}, got {shape}{remedy}")
    if value.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {value.device}")


def _real(name: str, value: Tensor) -> None:
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {value.dtype}: pass {name}.float()")
