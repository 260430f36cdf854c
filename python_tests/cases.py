"""Inputs that many tests share, and how a call is turned into a value and a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracle import EXAMPLES
from torch import Tensor

import kdkernels as kd

DEFAULT_LOSSES: list[kd.Loss] = [loss() for loss in kd.LOSSES.values()]
ALL_LOSSES: list[kd.Loss] = DEFAULT_LOSSES + [loss for name in kd.LOSSES for loss in EXAMPLES.get(name, ())]

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def logits(*shape: int, dtype: torch.dtype = F32, device: str = "cpu", seed: int = 0, spread: float = 2.0) -> Tensor:
    """Normal logits, the same on every device, rounded to the dtype: the oracle sees what the kernels see."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator)).to(device, dtype)


def pair(*shape: int, dtype: torch.dtype = F32, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """A student that wants its gradient, and a teacher."""
    student = logits(*shape, dtype=dtype, device=device, seed=2 * seed)
    return student.requires_grad_(), logits(*shape, dtype=dtype, device=device, seed=2 * seed + 1)


def value_and_gradient(call: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    """What call(student) gives, and the gradient of its sum; the student's own strides are kept, its grad is not."""
    leaf = student.detach().requires_grad_()
    value = call(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def name_of(loss: object) -> str:
    return repr(loss).replace("kdkernels.losses.", "") if isinstance(loss, kd.Loss) else str(loss).replace("torch.", "")
