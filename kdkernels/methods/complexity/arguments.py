"""What users pass to this package's functions, and every message: argument, rule, what came."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import checks

LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
_BLOCK = 1024
"""Rows of a Gram matrix looked at in one go: no second (N, N) is made to check the first."""


def model(value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(value).__name__}")
    if isinstance(value, DistributedDataParallel):
        raise ValueError("model must be the module itself, got DistributedDataParallel: pass model.module")
    if not any(parameter.requires_grad for parameter in value.parameters()):
        raise ValueError("model must have a parameter that requires grad, got none")


def inputs(x: object) -> tuple[Tensor, ...]:
    several = x if isinstance(x, tuple) else (x,)
    if not several:
        raise ValueError("x must be a tensor or a tuple of at least one, got an empty tuple")
    for each in several:
        if not isinstance(each, Tensor):
            raise TypeError(f"x must be a torch.Tensor or a tuple of them, got {type(each).__name__}")
        if each.dim() == 0:
            raise ValueError("x must have shape (n, ...), got ()")
    lengths = [len(each) for each in several]
    if len(set(lengths)) > 1:
        raise ValueError(f"x must hold as many examples in each of its tensors, got {lengths}")
    if lengths[0] == 0:
        raise ValueError(f"x must hold at least one example, got shape {tuple(several[0].shape)}")
    return tuple(each.detach() for each in several)


def outputs(value: object) -> None:
    if isinstance(value, str):
        if value not in ("all", "sum"):
            raise ValueError(f"outputs must be 'all', 'sum' or the int of one output, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"outputs must be 'all', 'sum' or the int of one output, got {type(value).__name__}")


def output_index(value: int, width: int) -> None:
    if not -width <= value < width:
        raise ValueError(f"outputs must lie in [{-width}, {width}), the model having {width} outputs, got {value}")


def at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def kernel_dtype(value: object) -> None:
    if value is not None and value not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32, torch.float64 or None, got {value!r}")


def model_outputs(value: Any, examples: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"model must return a torch.Tensor of outputs, got {type(value).__name__}: wrap it in a module that "
            "returns the logits"
        )
    if not value.dtype.is_floating_point:
        raise TypeError(f"model must return floating-point outputs, got {value.dtype}")
    if value.dim() not in (1, 2) or value.shape[0] != examples or value.shape[-1] == 0:
        raise ValueError(
            f"model must return outputs of shape (n,) or (n, d), got {tuple(value.shape)} for n = {examples} examples"
        )


def by_itself(alone: Tensor, batched: Tensor) -> None:
    """The first example's outputs (d,), alone and in a batch: rounding may differ, nothing else."""
    if alone.shape == batched.shape:
        difference = (alone - batched).abs()
        room = math.sqrt(torch.finfo(alone.dtype).eps) * batched.abs().max().clamp(min=1.0)
        if not bool((difference > room).any()):
            return
        came = f"a difference of {float(difference.max()):.3g}"
    else:
        came = f"shapes {tuple(alone.shape)} and {tuple(batched.shape)}"
    raise ValueError(
        "model must in eval mode give an example the same outputs alone and in a batch (no statistics of the batch, "
        f"no random numbers), got {came}"
    )


def gram(name: str, value: object) -> None:
    """Square, floating, finite, symmetric up to the square root of its dtype's rounding."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.dim() != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape (N, N) with N >= 1, got {tuple(value.shape)}")
    value = value.detach()
    sizes, asymmetries = [], []
    for start in range(0, len(value), _BLOCK):
        rows, columns = value[start : start + _BLOCK], value[start:, start : start + _BLOCK]
        sizes.append(rows.abs().max())
        asymmetries.append((rows[:, start:] - columns.mT).abs().max())
    largest, asymmetry = (float(torch.stack(each).max()) for each in (sizes, asymmetries))
    if not math.isfinite(largest):
        raise ValueError(f"{name} must be finite, got an entry of size {largest}")
    if largest == 0:
        raise ValueError(f"{name} must not be zero throughout")
    if asymmetry > math.sqrt(torch.finfo(value.dtype).eps) * largest:
        raise ValueError(
            f"{name} must be symmetric, got entries that differ from their mirror image by {asymmetry:.3g}, the "
            f"largest entry being {largest:.3g}"
        )


def stacked(targets: object, gram: Tensor) -> tuple[Tensor, int]:
    """Targets (n,), (n, d) or (..., n, d) as float64 (..., N), and n."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if not targets.dtype.is_floating_point:
        raise TypeError(f"targets must be floating point (see `residual`), got {targets.dtype}")
    if targets.device != gram.device:
        raise ValueError(f"targets must be on gram's device {gram.device}, got {targets.device}")
    size, shape = len(gram), tuple(targets.shape)
    whole = shape[-2:] if targets.dim() > 1 else (*shape, 1)
    if targets.dim() == 0 or whole[0] * whole[1] != size:
        hint = f": for {shape[0]} sets of one output each, {(*shape, 1)}" if shape[1:] == (size,) else ""
        raise ValueError(
            f"targets must have shape (n,), (n, d) or (..., n, d) with n * d = {size}, the rows of gram, got "
            f"{shape}{hint}"
        )
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets must be finite, got an infinity or a NaN among them")
    return targets.detach().double().reshape(*shape[:-2], size), whole[0]


def jitter(value: object) -> None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"jitter must be 'auto' or a number, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"jitter must be 'auto' or a number, got {type(value).__name__}")
    elif not 0.0 <= value < math.inf:
        raise ValueError(f"jitter must not be negative, and finite, got {value}")


def other(value: object, gram_matrix: Tensor) -> None:
    """A second Gram matrix, that goes with the first."""
    if isinstance(value, Tensor) and value.device != gram_matrix.device:
        raise ValueError(f"other must be on gram's device {gram_matrix.device}, got {value.device}")
    gram("other", value)
    if value.shape != gram_matrix.shape:
        raise ValueError(f"other must have the shape of gram {tuple(gram_matrix.shape)}, got {tuple(value.shape)}")


def not_zero(norms: Tensor) -> None:
    if bool((norms == 0).any()):
        raise ValueError("targets must not be zero throughout: their alignment is not defined")


def space(value: object, temperature: float) -> None:
    if value not in ("probabilities", "logits"):
        raise ValueError(f"space must be 'probabilities' or 'logits', got {value!r}")
    checks.temperature(temperature)
    if value == "logits" and temperature != 1:
        raise ValueError(f"temperature must be 1 in the space of logits, got {temperature}")


def outputs_of_student(value: object) -> None:
    checks.logits("student", value)
    if value.dim() != 2:
        raise ValueError(f"student must have shape (n, d), got {tuple(value.shape)}")


def teacher(value: Tensor, student: Tensor) -> None:
    checks.logits("teacher_or_labels", value)
    if value.shape != student.shape:
        raise ValueError(
            f"teacher_or_labels must have the shape of student {tuple(student.shape)}, got {tuple(value.shape)}"
        )
    _beside("teacher_or_labels", value, student)


def labels(value: Tensor, student: Tensor, space: str, temperature: float) -> None:
    rows, classes = student.shape
    if value.shape != (rows,):
        raise ValueError(f"teacher_or_labels must be labels of shape ({rows},), got {tuple(value.shape)}")
    _beside("teacher_or_labels", value, student)
    if space == "logits":
        raise ValueError("space must be 'probabilities' where labels are given, got 'logits'")
    if temperature != 1:
        raise ValueError(f"temperature must be 1 where labels are given, got {temperature}")
    wrong = (value.long() < 0) | (value.long() >= classes)
    if bool(wrong.any()):
        raise ValueError(f"teacher_or_labels must lie in [0, {classes}), got {int(value[wrong][0])}")


def _beside(name: str, value: Tensor, student: Tensor) -> None:
    if value.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {value.device}")
