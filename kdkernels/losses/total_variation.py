"""Total variation distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Loss, jit, tl


@jit
def _term(log_ratio, q, p, column, parameter, table):
    # The last branch is 0 at equality and keeps a NaN. (A difference q - p may be fused with the products that made q
    # and p, and is then not 0 there.)
    half = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0 * (q + p)))
    return half * (q - p), half * q


@dataclass(frozen=True)
class TotalVariation(Loss):
    """1/2 sum_v |p_v - q_v|, p the teacher and q the student; it lies in [0, 1].

    Equivalent to ``0.5 * (q - p).abs().sum(-1)``. Subgradient 0 where p_v = q_v, as ``torch.abs`` has. The gradient
    in log q is q sign(q - p) / 2.

    Source: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023, section 3.
    """

    name: ClassVar[str] = "total_variation"
    term = _term

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        difference = log_q.exp() - log_p.exp()
        # |x| as x sign(x): torch.abs has a zero gradient at NaN, where silence would be wrong.
        sign = torch.where(difference.isnan(), difference, difference.sign()).detach()
        return 0.5 * (difference * sign).sum(-1)
