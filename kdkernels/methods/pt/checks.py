"""What users pass to this package's functions, and every message: argument, rule, what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import checks
from ...losses.perturbed import LARGEST_ORDER, checked

# How far a row may be from summing to one: what rounding its entries to the dtype leaves, with room to spare.
_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}


def probabilities(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of probabilities, got {type(value).__name__}")
    if value.dtype not in _SUM_TOLERANCE:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")
    if value.dim() == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., C) with C >= 1, got {tuple(value.shape)}")
    if not bool((value >= 0).all()):
        raise ValueError(f"{name} must not be negative or NaN, got {float(value.min())}")
    sums = value.sum(-1, dtype=torch.float64)
    tolerance = _SUM_TOLERANCE[value.dtype]
    wrong = ~((sums - 1.0).abs() <= tolerance)
    if bool(wrong.any()):
        raise ValueError(f"{name} must sum to one over the last dimension, got a sum of {float(sums[wrong][0])}")


def coefficients(value: object, probs: Tensor) -> None:
    """What `kdkernels.Perturbed` asks of them, and that they go with these probabilities (..., C)."""
    checked(value)
    if value.device != probs.device:
        raise ValueError(f"coefficients must be on the teacher's device {probs.device}, got {value.device}")
    classes = probs.shape[-1]
    if value.dim() == 2 and value.shape[0] != classes:
        raise ValueError(
            f"coefficients must have shape (M,) or ({classes}, M) for {classes} classes, got {tuple(value.shape)}"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError("coefficients must be finite, got an infinity or a NaN among them")


def examples(name: str, value: Tensor, labels: object) -> None:
    """A labelled set: value (N, C) with N >= 1, and labels (N,) in [0, C) on its device."""
    if value.dim() != 2 or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape (N, C) with N >= 1, got {tuple(value.shape)}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"labels must be integers (int64), got {labels.dtype}")
    rows, classes = value.shape
    if labels.shape != (rows,):
        raise ValueError(f"labels must have shape ({rows},), one for each row of {name}, got {tuple(labels.shape)}")
    if labels.device != value.device:
        raise ValueError(f"labels must be on the device of {name}, {value.device}, got {labels.device}")
    wide = labels.long()  # a comparison with a number wraps it into the dtype: 300 is 44 in uint8
    wrong = (wide < 0) | (wide >= classes)
    if bool(wrong.any()):
        raise ValueError(f"labels must lie in [0, {classes}), got {int(labels[wrong][0])}")


def teacher_logits(value: object) -> None:
    checks.logits("teacher_logits", value)
    top = value.amax(-1)
    if not bool(torch.isfinite(top).all()):
        wrong = float(top[~torch.isfinite(top)][0])
        raise ValueError(f"teacher_logits must hold no NaN, no +inf and no row of -inf alone, got a maximum of {wrong}")


def orders(value: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"orders must be a sequence of ints such as (1, 2, 3), got {value!r}")
    several = tuple(value)
    if not several:
        raise ValueError("orders must name at least one order, got none")
    for order in several:
        if isinstance(order, bool) or not isinstance(order, int):
            raise TypeError(f"orders must be ints, got {type(order).__name__}")
        if not 1 <= order <= LARGEST_ORDER:
            raise ValueError(f"orders must lie in 1..{LARGEST_ORDER}, got {order}")
    return several


def draws(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"draws must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"draws must be at least 1, got {value}")


def interval(low: float, high: float) -> None:
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if not low < high:
        raise ValueError(f"low must be below high, got low={low} and high={high}")


def generator(value: torch.Generator | None) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(
            f"generator must be a CPU generator, so that every device draws the same, got one on {value.device}"
        )
