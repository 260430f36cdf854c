"""The Cholesky factor of a kernel, with as much jitter as it takes, and how well conditioned that is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 10.0
"""From one jitter of the series to the next."""
LARGEST = 1.0
"""A Gram matrix that needs more jitter than its own mean diagonal is no kernel."""
_VECTORS, _ITERATIONS = 4, 16
"""Of the power iterations: with 16, the worst start of a (20480, 20480) matrix is off by a factor below 1.4."""


class Factor(NamedTuple):
    """(K + jitter mean(diag K) I) / scale = L L^T."""

    lower: Tensor
    """L, (N, N) float64."""
    scale: float
    """A power of two, with which nothing is rounded."""
    mean: float
    """mean(diag K) / scale, in [1, 2)."""
    jitter: float
    condition: float
    """Of L L^T, as `condition` estimates it."""


def factorise(gram: Tensor, largest: float, jitter: str | float) -> Factor:
    """With the jitter given, or the first that does; largest: of gram's entries."""
    size = _power(largest)
    mean = float((gram.diagonal().double() / size).mean())  # a sum of the entries themselves could be infinite
    if not mean > 0 or bool((gram.diagonal() < 0).any()):
        raise ValueError(
            "gram must have a diagonal that is nowhere negative and not zero, as a kernel has, got a mean of "
            f"{mean * size:.3g} and a minimum of {float(gram.diagonal().min()):.3g}"
        )
    scale = size * _power(mean)
    mean /= _power(mean)
    # Beyond, K^-1 is made of rounding errors; a matrix that is singular gets there, or has no factor, by chance.
    bound = 1.0 / (math.sqrt(len(gram)) * torch.finfo(torch.float64).eps)
    for relative in series(gram.dtype) if jitter == "auto" else (float(jitter),):
        lower = cholesky(gram, scale, mean * relative)
        if lower is not None and (found := condition(lower)) < bound:
            return Factor(lower, scale, mean, relative, found)
    if jitter == "auto":
        raise RuntimeError(
            f"gram is not positive semidefinite: even jitter={relative:.3g} of its mean diagonal leaves it without a "
            "Cholesky factor"
        )
    raise RuntimeError(
        f"gram has no Cholesky factor with jitter={jitter}: it is singular to rounding; a larger jitter= or "
        "jitter='auto' gives it one"
    )


def _power(value: float) -> float:
    """The largest power of two that is not above the value."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1)


def series(dtype: torch.dtype) -> Iterator[float]:
    """The rounding of the dtype, and its multiples by powers of `STEP` up to `LARGEST`."""
    jitter = torch.finfo(dtype).eps
    while jitter <= LARGEST:
        yield jitter
        jitter *= STEP


def cholesky(gram: Tensor, scale: float, added: float) -> Tensor | None:
    """The factor of K / scale + added I, or None where there is none."""
    scaled = gram.to(torch.float64, copy=True).div_(scale)
    scaled.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(scaled)
    return None if int(info) else lower


def squares(factor: Factor, targets: Tensor) -> Tensor:
    """Y^T (L L^T)^-1 Y of targets (..., N): (...)."""
    columns = targets.reshape(-1, targets.shape[-1]).mT
    solved = torch.linalg.solve_triangular(factor.lower, columns, upper=False)
    return solved.square().sum(0).reshape(targets.shape[:-1])


def condition(lower: Tensor) -> float:
    """lambda_max / lambda_min of L L^T by power iterations on it and on its inverse, from below."""
    # Its own generator, so that neither the caller's random numbers nor the answer change.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(lower), _VECTORS, generator=generator, dtype=torch.float64).to(lower.device)
    largest = inverse = start.new_zeros(())
    up = down = start / start.norm(dim=0)
    for _ in range(_ITERATIONS):
        half = lower.mT @ up
        largest = half.square().sum(0).max()
        up = lower @ half
        up /= up.norm(dim=0)
        half = torch.linalg.solve_triangular(lower, down, upper=False)
        inverse = half.square().sum(0).max()
        down = torch.linalg.solve_triangular(lower.mT, half, upper=True)
        down /= down.norm(dim=0)
    return float(largest * inverse)
