"""What a fuzz call has to give, and the pieces that its limits are made of: sizes of rounding, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from oracle import Answer
from tolerance import Scale
from torch import Tensor


@dataclass
class Wanted:
    """The result (in float64, NaN included) and the gradient (rows, columns) with their limits; None: undefined."""

    values: Tensor
    limits: Tensor
    gradient: Tensor
    gradient_limits: Tensor
    unsure: Tensor  # (rows,), or () of a total: whose value no docstring defines
    slopeless: Tensor  # (rows,): whose gradient it does not define
    unread: Tensor  # (rows,): whose value and gradient are zero, bit for bit


def depth(logits: Tensor, temperature: float) -> Tensor:
    """How coarsely each row's (z_max - z) / T is rounded, at worst: (rows,). test_extremes has a quarter of it."""
    z = logits.double()
    z = torch.where(z.isfinite(), z, torch.nan)
    high, low = (torch.where(z.isnan(), fill, z) for fill in (-1e300, 1e300))
    return 1.0 + (high.amax(-1) - low.amin(-1)).clamp(0.0, 1e30).nan_to_num(0.0) / temperature


def deeper(size: Scale, by: Tensor) -> Scale:
    """`Scale.deeper` row by row. A probability that exp flushed to zero was to be multiplied by a logarithm as deep."""
    column = by[:, None]
    return Scale(size.values * by.reshape(-1, *[1] * (size.values.dim() - 1)), (size.gradient + 1e-30) * column, column)


def times(size: Scale, factor: Tensor) -> Scale:
    return Scale(size.values * factor.abs(), size.gradient * factor.abs()[:, None], size.depth)


def times_answer(answer: Answer, factor: Tensor) -> Answer:
    slack = answer.slack * factor.abs()[:, None]
    return Answer(answer.values * factor, answer.gradient * factor[:, None], slack)


def centred(logits: Tensor) -> Tensor:
    """In float64 with the largest logit at 0: the oracle divides by T first, and an offset would cost it digits."""
    z = logits.double()
    return z - z.amax(-1, keepdim=True)
