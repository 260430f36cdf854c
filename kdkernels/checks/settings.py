"""Numbers and names: temperature, reduction, normalizer, classes."""

from __future__ import annotations

import math
import numbers
import sys
from typing import cast

import torch
from torch import Tensor

from . import memory

REDUCTIONS = ("none", "sum", "mean", "batchmean")
_LARGEST_SQUARED = 1.8e19
_SMALLEST_TEMPERATURE = 1e-37  # it and its reciprocal are normal float32 numbers


def number(name: str, value: object, otherwise: str = "") -> float:
    """A real number of Python's or of NumPy's, as Python's; bool is none."""
    if type(value) is float or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    remedy = f": pass float({name})" if isinstance(value, Tensor) else ""
    raise TypeError(f"{name} must be a number{otherwise}, got {type(value).__name__}{remedy}")


def integer(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def temperature(value: object) -> float:
    value = number("temperature", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")
    if not _SMALLEST_TEMPERATURE <= value <= 1.0 / _SMALLEST_TEMPERATURE:
        raise ValueError(f"temperature must lie in [1e-37, 1e37], where float32 holds its reciprocal, got {value}")
    return value


def squared(temperature: float) -> float:
    """T^2 by which a result is multiplied; checked: float32 has to hold it."""
    if temperature > _LARGEST_SQUARED:
        raise ValueError(
            f"temperature must not exceed {_LARGEST_SQUARED:g}, whose square float32 holds, where the loss is "
            f"multiplied by T^2 (tau_squared=True), got {temperature}"
        )
    return temperature**2


def ignore_index(value: object) -> int:
    value = integer("ignore_index", value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"ignore_index must be an int64, got {value}")
    return value


def flag(name: str, value: object) -> None:
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, got {value!r}")


def reduction(value: str, normalizer: object, student: Tensor | None = None) -> float | Tensor | None:
    """The divisor that replaces the mean's, a number or a 0-d tensor. 0 may be one: `nothing_counted`."""
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {value!r}")
    if normalizer is None:
        return None
    if value != "mean":
        raise ValueError(f"normalizer replaces the divisor of reduction='mean'; it cannot go with {value!r}")
    if isinstance(normalizer, Tensor):
        return _count(normalizer, student)
    return _divisor(number("normalizer", normalizer, " or a 0-d tensor"))


def _divisor(value: float) -> float:
    if not 0.0 <= value <= sys.float_info.max:
        raise ValueError(f"normalizer must be positive and finite, got {value}")
    return value


def zero(normalizer: float | Tensor | None) -> bool:
    """Whether a divisor is known to be 0."""
    if isinstance(normalizer, Tensor):
        return memory.readable(normalizer) and normalizer.item() == 0
    return normalizer == 0


def _count(normalizer: Tensor, student: Tensor | None) -> Tensor:
    memory.companion("normalizer", normalizer, student)
    if normalizer.numel() != 1:
        shape = tuple(normalizer.shape)
        raise ValueError(f"normalizer must be a number or a 0-d tensor, got shape {shape}: one divisor serves all rows")
    if normalizer.dtype == torch.bool or normalizer.is_complex():
        raise TypeError(f"normalizer must be a number or a 0-d tensor of one, got {normalizer.dtype}")
    has_value("normalizer", normalizer, student)
    constant("normalizer", normalizer)
    if memory.readable(normalizer):
        _divisor(normalizer.item())
    return normalizer if normalizer.dim() == 0 else normalizer.reshape(())


def has_value(name: str, value: Tensor, student: Tensor | None) -> None:
    """A number in a tensor may be on another device than the student, but not on none."""
    if value.is_meta and student is not None and not student.is_meta:
        raise ValueError(f"{name} must have a value for a student on {student.device}, got one on meta")


def constant(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ValueError(f"{name} must not require grad (it is a constant of the loss): pass {name}.detach()")


def share(value: object) -> float:
    """A number in [0, 1]."""
    value = number("alpha", value, " or one value per row")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {value}")
    return cast(float, value)
