"""Reverse Kullback-Leibler divergence, the mode-seeking loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Loss, divergence_sum, jit, tl


@jit
def _term(log_ratio, q, p, column, parameter, table):
    f = tl.where(q == 0.0, 0.0, -q * log_ratio)
    return f, f


@dataclass(frozen=True)
class ReverseKL(Loss):
    """KL(q || p) = sum_v q_v log(q_v / p_v) in nats, p the teacher and q the student.

    Equivalent to ``F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)``. Seeks the teacher's largest
    modes. ``0 log 0 = 0``; student mass on a teacher logit of -inf gives +inf. The gradient in log q is f + q; the
    term returns f, equal up to a multiple of q.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, equation 1.
    """

    name: ClassVar[str] = "reverse_kl"
    term = _term

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return divergence_sum(log_q, log_p)
