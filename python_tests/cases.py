"""Inputs that many tests share, and how a call is turned into a value and a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracle import EXAMPLES
from torch import Tensor

import kdkernels as kd

# What the losses without defaults are made with. Coefficients of both signs, in the paper's range, and convex.
ARGUMENTS = {"perturbed": (torch.tensor([1.5, -0.25, 0.5]),)}
# Losses that are no divergence, with the reason: they are not zero at equality, nor is zero their least value.
NO_DIVERGENCE = {"perturbed": "at q = p it is sum_c p_c sum_m eps_m (1 - p_c)^m; its minimum is at the proxy teacher"}

DEFAULT_LOSSES: list[kd.Loss] = [loss(*ARGUMENTS.get(name, ())) for name, loss in kd.LOSSES.items()]
ALL_LOSSES: list[kd.Loss] = DEFAULT_LOSSES + [loss for name in kd.LOSSES for loss in EXAMPLES.get(name, ())]
DIVERGENCES: list[kd.Loss] = [loss for loss in ALL_LOSSES if loss.name not in NO_DIVERGENCE]

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def per_class(vocab: int, orders: int = 3, dtype: torch.dtype = F32) -> kd.Perturbed:
    """A loss with coefficients for each class, for one vocabulary: in the paper's range, from -1/m on."""
    lowest = -1.0 / torch.arange(1, orders + 1)
    uniform = torch.rand(vocab, orders, generator=torch.Generator().manual_seed(11))
    return kd.Perturbed((lowest + (10.0 - lowest) * uniform).to(dtype))


def on(device: str, loss: kd.Loss) -> kd.Loss:
    """The loss with its coefficients, where it has any, on a device."""
    return kd.Perturbed(loss.coefficients.to(device)) if isinstance(loss, kd.Perturbed) and device != "cpu" else loss


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
