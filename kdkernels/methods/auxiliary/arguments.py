"""The checks of what users pass that are this package's own; those of logits are `kdkernels.checks`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ... import checks

REDUCTIONS = ("none", "sum", "mean")
_SMALLEST = 1e-37  # it and its reciprocal are normal float32 numbers


def at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def storage(dtype: object) -> None:
    if dtype not in checks.LOGIT_DTYPES:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype!r}")


def kappa(value: object) -> None:
    _number("kappa", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"kappa must be positive and finite, got {value}")
    if not _SMALLEST <= value <= 1.0 / _SMALLEST:
        raise ValueError(f"kappa must lie in [1e-37, 1e37], where float32 holds its reciprocal, got {value}")


def settings(value: Any) -> None:
    """The numbers of a loss: kappa, mixture, beta, temperature."""
    kappa(value.kappa)
    _number("mixture", value.mixture)
    if not 0.0 <= value.mixture <= 1.0:
        raise ValueError(f"mixture must lie in [0, 1], got {value.mixture}")
    _number("beta", value.beta)
    if not 0.0 <= value.beta <= 1.0 / _SMALLEST:
        raise ValueError(f"beta must lie in [0, 1e37], what float32 holds, got {value.beta}")
    checks.squared(checks.temperature(value.temperature))


def projection(value: object) -> None:
    if value is not None and not isinstance(value, nn.Module):
        raise TypeError(f"projection must be a torch.nn.Module, got {type(value).__name__}")


def reduction(value: object) -> None:
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {value!r}")


def batch(student: Tensor, teacher: Tensor, classes: int) -> None:
    """Logits (B, C) that go with each other and with the classes of the bank."""
    checks.pair(student, teacher, None)
    if student.dim() != 2:
        raise ValueError(f"student must have shape (B, C), got {tuple(student.shape)}")
    if student.shape[1] != classes:
        raise ValueError(f"student must have num_classes={classes} logits per row, got {student.shape[1]}")


def rows(name: str, value: object, width: int, device: torch.device, count: int | None = None) -> None:
    """Floating point (B, width) on the bank's device; with `count`, B is known."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in checks.LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    wanted = ("B" if count is None else count, width)
    if value.dim() != 2 or value.shape[1] != width or count not in (None, value.shape[0]):
        raise ValueError(f"{name} must have shape ({wanted[0]}, {wanted[1]}), got {tuple(value.shape)}")
    on_device(name, value, device)


def on_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} must be on the bank's device {device}, got {value.device}")


def constant(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ValueError(f"{name} must not require grad (no gradient flows into it): pass {name}.detach()")


def index(value: object, count: int, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"index must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"index must be a dense tensor, got layout {value.layout}")
    if value.shape != (count,):
        raise ValueError(f"index must have shape ({count},), one number per sample, got {tuple(value.shape)}")
    on_device("index", value, device)


def given(value: object) -> None:
    if value is None:
        raise ValueError(
            "index must be given in training mode, got None: each sample's own entry in the bank holds the answer and "
            "could not be left out"
        )


def projected(value: object, count: int, dim: int, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"projection must return a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in checks.LOGIT_DTYPES:
        raise TypeError(f"projection must return float32, float16, bfloat16 or float64, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"projection must return a dense tensor, got layout {value.layout}")
    if value.shape != (count, dim):
        raise ValueError(f"projection must return shape {(count, dim)}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"projection must return a tensor on the bank's device {device}, got {value.device}")


def bank(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"bank must be a kdkernels InstanceBank, got {type(value).__name__}")


def filled(count: int) -> None:
    if not count:
        raise RuntimeError("the bank is empty: push the teacher's features first (AuxiliaryKD does in training mode)")


def position(state: object, capacity: int) -> tuple[int, int]:
    """What a state_dict says of the queue: how many entries it has, and where the next goes."""
    if not isinstance(state, Tensor) or state.shape != (2,) or state.dtype != torch.int64:
        came = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(f"state_dict must hold two int64, entries and place of the next, as extra state, got {came}")
    filled, following = state.tolist()
    if not (0 <= filled <= capacity and 0 <= following < capacity and (filled == capacity or following == filled)):
        raise ValueError(
            f"state_dict must come from a bank of capacity {capacity}, got one with {filled} entries whose next goes "
            f"to {following}"
        )
    return filled, following


def stored(name: str, value: object, shape: torch.Size) -> None:
    """A buffer in a state_dict."""
    came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if came != tuple(shape):
        raise ValueError(f"state_dict must hold {name} of shape {tuple(shape)}, got {came}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
