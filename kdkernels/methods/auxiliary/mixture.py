"""The first term of the loss, T^2 KL(t || p_S), for a mixture p_S of which one part is known as logarithms."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    values: Tensor
    """(rows,)"""
    student: Tensor
    """d/dz, (rows, C)"""
    p_aux: Tensor
    """d/dp_aux, (rows, C)"""


def mixture_divergence(
    log_s: Tensor, log_t: Tensor, p_aux: Tensor, mixture: float, temperature: float, largest: float
) -> Mixed:
    """T^2 KL(t || (1 - mixture) s + mixture p_aux) for log s and log t at temperature T, all (rows, C); mixture > 0.

    In logarithms, so that a class of which neither part has a share that the dtype holds keeps its value. d/dp_aux is
    -T^2 mixture t / p_S; it will be multiplied by `largest` and must stay finite, where p_S underflows too: there it
    meets weights that are 0.
    """
    log_share = log_s + (math.log1p(-mixture) if mixture < 1 else -math.inf)
    log_p = torch.logaddexp(log_share, p_aux.log() + math.log(mixture))
    t = log_t.exp()
    values = torch.where(t == 0, 0.0, t * (log_t - log_p)).sum(-1) * temperature**2
    # Where p_S is 0 all of it, if anything, is the student's: the limit, and the gradient that ForwardKL has there.
    share = torch.where(log_p == -math.inf, float(mixture < 1), (log_share - log_p).exp())
    rho = t * share
    student = (log_s.exp() * rho.sum(-1, keepdim=True) - rho) * temperature
    floor = torch.finfo(t.dtype).tiny * max(1.0, temperature**2 * largest)
    return Mixed(values, student, t.div_(log_p.exp().clamp_(min=floor)).mul_(-mixture * temperature**2))
