"""What multiplies each row: mask, weight, alpha and the divisor of a reduction become a tensor and a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import checks
from .backends import recorded, reference


def row_weights(student, teacher, counted, weight, reduction, normalizer) -> tuple[Tensor | None, float]:
    """What multiplies each row: a (rows,) tensor, or None for ones, and a number. Never waits for a device."""
    divisor = 1
    if reduction == "batchmean":
        divisor = _count(student, min(student.dim() - 1, 1))
    elif reduction == "mean":
        divisor = normalizer
        if normalizer is None:
            divisor = _count(student, student.dim() - 1) if counted is None else counted.sum().clamp(min=1)
        elif checks.zero(normalizer):
            checks.nothing_counted(normalizer, counted, student)
            divisor = student.new_zeros((), dtype=torch.float32)
    if counted is None and weight is None and not isinstance(divisor, Tensor):
        return None, 1.0 / divisor
    compute = reference.accumulation_dtype(student, teacher)
    weights = None if weight is None else flat(weight).to(compute)
    if counted is not None:
        weights = counted.to(compute) if weights is None else torch.where(counted, weights, 0.0)
    if not isinstance(divisor, Tensor):
        return weights, 1.0 / divisor
    share = divisor.to(student.device, compute, non_blocking=True).reciprocal()
    if weights is None:
        if recorded():  # a number of rows would be a constant of the graph
            return flat(torch.ones_like(student.detach()[..., 0], dtype=compute)) * share, 1.0
        return share.expand(math.prod(student.shape[:-1])), 1.0
    # A count of tokens may be 0 where every row is masked: 0 times infinity would be NaN.
    return torch.where(weights == 0, 0.0, weights * share), 1.0


def _count(student: Tensor, dims: int) -> int | Tensor:
    """The entries of the first `dims` dimensions, at least 1; a tensor where a tracer would make a number a constant of
    its graph, which other batches then were divided by."""
    if not recorded() or student.numel() == 0:
        return max(math.prod(student.shape[:dims]), 1)  # not .numel(): that would fix a symbolic batch size
    first = student.detach()[(slice(None),) * dims + (0,) * (student.dim() - dims)]
    return torch.ones_like(first, dtype=torch.float64).sum()


def flat(per_row: Tensor) -> Tensor:
    """(rows,); no reshape where it is that already, for tracers that would record its length."""
    return per_row if per_row.dim() == 1 else per_row.reshape(-1)


def split(
    weights: Tensor | None, alpha: float | Tensor, scale: float, student: Tensor, teacher: Tensor
) -> tuple[Tensor | None, Tensor | None, float, float]:
    """Weights and scales of the soft and the hard term: alpha of each row's weight, and the rest."""
    if not isinstance(alpha, Tensor):
        return weights, weights, alpha * scale, (1.0 - alpha) * scale
    share = alpha.to(student.device, reference.accumulation_dtype(student, teacher), non_blocking=True)
    share = flat(share if share.dim() == student.dim() - 1 else share.expand(student.shape[:-1]))
    if weights is None:
        return share, 1.0 - share, scale, scale
    return weights * share, weights * (1.0 - share), scale, scale
