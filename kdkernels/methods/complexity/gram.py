"""Numbers of a Gram matrix: how complex targets are for its kernel, how they are aligned, how alike two kernels are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import arguments, factor
from .blocks import blocks


class Complexity(NamedTuple):
    """What `supervision_complexity` gives.

    value: float64, 0-d for one set of targets, else their leading shape.
    jitter: what was added to the kernel's diagonal, relative to its mean.
    condition: estimate of lambda_max / lambda_min of the kernel with that jitter.
    """

    value: Tensor
    jitter: float
    condition: float


@torch.no_grad()
def supervision_complexity(
    gram: Tensor, targets: Tensor, *, adjusted: bool = True, jitter: str | float = "auto"
) -> Complexity:
    """How complex targets are for a kernel: (1/n) sqrt(Y^T K^-1 Y tr K), or plainly sqrt(Y^T K^-1 Y).

    Equivalent, with Y the targets as one column of N = n d and K including the jitter, to::

        K = gram.double() + jitter * gram.diagonal().double().mean() * torch.eye(N)
        (Y.T @ torch.linalg.inv(K) @ Y * K.trace()).sqrt() / n

    by a Cholesky factor and one triangular solve for all sets of targets; K^-1 is never formed. It takes about three
    float64 matrices (N, N) beside the Gram matrix, N^3 / 3 multiplications for each jitter tried, and 64 products with
    the factor for its condition.

    Args:
        gram: (N, N), floating point, symmetric (the lower triangle is read), such as `empirical_ntk` gives.
        targets: floating point, (n,) or (n, d) with n d = N, row i * d + c of gram being output c of example i; or
            (..., n, d), many sets at once from one factor: k sets of single outputs are (k, N, 1). With k = 1 too:
            (1, N) is one example of N outputs, whose adjusted complexity is N times that of N examples.
        adjusted: whether it is the adjusted complexity, which does not change with the scale of K.
        jitter: added to the diagonal, relative to its mean; a number >= 0 as it is, or "auto": the first of eps, 10
            eps, 100 eps, ... <= 1 with which there is a factor, eps being the rounding of gram's dtype (a kernel that
            was computed in float32 has noise of that size, whatever is done with it afterwards). At most 1 / eps64.

    Conventions: n counts examples, not outputs. The adjusted one is at least ||Y|| / n. The condition is estimated from
    below, by power iterations, and is usually right to a few percent; a jitter with which it reaches
    1 / (sqrt(N) eps64), beyond which K^-1 is made of rounding errors, counts as too small. Where the condition is
    large, the value is decided by the smallest eigenvalues, and with them by the jitter: compare values of one jitter.

    Returns:
        `Complexity`: value, jitter, condition.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value; a gram that is not finite, not symmetric,
            zero, or has a negative diagonal.
        RuntimeError: no factor with the jitter given, or with any.

    Source: Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), both definitions as recalled, the count n for several
    outputs being our reading. Jitter and its series, what counts as a factor, and the condition are ours.
    """
    arguments.jitter(jitter)
    largest = arguments.gram("gram", gram)
    columns, examples = arguments.stacked(targets, gram)
    columns, sizes = _unit(columns)
    found = factor.factorise(gram.detach(), largest, jitter)
    value = factor.squares(found, columns)
    if adjusted:
        value = (value * (len(gram) * found.mean * (1.0 + found.jitter))).sqrt_() / examples
    else:
        value = value.sqrt_() / math.sqrt(found.scale)
    return Complexity(value * sizes, found.jitter, found.condition)


@torch.no_grad()
def kernel_alignment(gram: Tensor, targets: Tensor) -> Tensor:
    """The alignment of a kernel with targets: <K, Y Y^T>_F / (||K||_F ||Y Y^T||_F).

    Equivalent to ``Y.T @ K @ Y / (K.norm() * Y.square().sum())`` with Y the targets as one column, in float64; neither
    Y Y^T nor a float64 copy of K is made.

    Args:
        gram: (N, N), floating point, symmetric.
        targets: floating point, (n,), (n, d) or (..., n, d) with n d = N, as in `supervision_complexity`.

    Returns:
        float64, 0-d for one set of targets, else their leading shape; in [-1, 1], and not negative for a positive
        semidefinite gram. Its scale and that of the targets do not matter.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, or zero throughout.

    Source: the kernel-target alignment of Cristianini et al., NeurIPS 2001, with the tangent kernel as in Harutyunyan
    et al., ICLR 2023 (arXiv 2301.12245), as recalled.
    """
    largest = arguments.gram("gram", gram)
    columns, _ = arguments.stacked(targets, gram)
    columns, sizes = _unit(columns)
    arguments.not_zero(sizes)
    columns /= torch.linalg.vector_norm(columns, dim=-1, keepdim=True)
    flat = columns.reshape(-1, len(gram))
    product, square = flat.new_zeros(len(flat)), flat.new_zeros(())
    for start, rows in _unit_blocks(gram, largest):
        product += ((rows @ flat.mT) * flat[:, start : start + len(rows)].mT).sum(0)
        square += rows.square().sum()
    return (product / square.sqrt()).clamp_(-1.0, 1.0).reshape(columns.shape[:-1])


@torch.no_grad()
def ntk_similarity(gram: Tensor, other: Tensor) -> Tensor:
    """How alike two kernels are: <K, K'>_F / (||K||_F ||K'||_F), 1 where one is a multiple of the other.

    Equivalent to ``(K * M).sum() / (K.norm() * M.norm())`` in float64, without a float64 copy of either.

    Args:
        gram, other: (N, N), floating point, symmetric; the kernels of a student and of its teacher on the same
            examples, say. Their dtypes may differ.

    Returns:
        0-d float64 in [-1, 1], and not negative for positive semidefinite kernels.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, or zero throughout.

    Source: Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), as recalled.
    """
    largest = arguments.gram("gram", gram)
    other_largest = arguments.other(other, gram)
    sums = torch.zeros(3, dtype=torch.float64, device=gram.device)
    both = zip(_unit_blocks(gram, largest), _unit_blocks(other, other_largest), strict=True)
    for (_, first), (_, second) in both:
        sums += torch.stack([(first * second).sum(), first.square().sum(), second.square().sum()])
    return (sums[0] / sums[1].sqrt() / sums[2].sqrt()).clamp_(-1.0, 1.0)


def _unit(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sets of targets (..., N) whose largest entry is one, or that are zero, and the sizes (...) they had: a norm
    squares its entries, and with them would leave float64 where they are beyond 1e-154 or 1e154."""
    sizes = columns.abs().amax(-1)
    return columns / torch.where(sizes == 0, 1.0, sizes).unsqueeze(-1), sizes


def _unit_blocks(gram: Tensor, largest: float) -> Iterator[tuple[int, Tensor]]:
    """`blocks` in float64, the largest entry being one for the reason of `_unit`."""
    for start, rows in blocks(gram):
        yield start, rows.double() / largest
