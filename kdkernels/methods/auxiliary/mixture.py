"""The first term of the loss, T^2 KL(t || p_S), for a mixture p_S of which one part is known as logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class MixtureDivergence:
    """T^2 KL(t || (1 - mixture) s + mixture p_aux) for log s and log t at temperature T, all (rows, C); mixture > 0.

    In logarithms, so that a class of which neither part has a share that the dtype holds keeps its value.
    """

    def __init__(self, log_s: Tensor, log_t: Tensor, p_aux: Tensor, mixture: float, temperature: float) -> None:
        self.log_s, self.mixture, self.temperature = log_s, mixture, temperature
        self.log_share = log_s + (math.log1p(-mixture) if mixture < 1 else -math.inf)
        self.log_p = torch.logaddexp(self.log_share, p_aux.log() + math.log(mixture))
        self.t = log_t.exp()
        self.values = torch.where(self.t == 0, 0.0, self.t * (log_t - self.log_p)).sum(-1) * temperature**2
        """(rows,)"""

    def student(self) -> Tensor:
        """d/dz, (rows, C)"""
        # Where p_S is 0 all of it, if anything, is the student's: the limit, and the gradient that ForwardKL has there.
        none, share = self.log_p == -math.inf, (self.log_share - self.log_p).exp()
        rho = self.t * torch.where(none, float(self.mixture < 1), share)
        return (self.log_s.exp() * rho.sum(-1, keepdim=True) - rho) * self.temperature

    def p_aux(self, largest: float) -> Tensor:
        """d/dp_aux = -T^2 mixture t / p_S, (rows, C).

        It will be multiplied by `largest` and is finite then, where p_S underflows too: there it meets weights that
        are 0.
        """
        scale = self.temperature**2
        floor = torch.finfo(self.t.dtype).tiny * max(1.0, scale, scale * largest)
        return (self.t / self.log_p.exp().clamp_(min=floor)).mul_(-self.mixture * scale)
