"""Forward Kullback-Leibler divergence, the loss of classic distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Loss, divergence_sum, jit, tl


@jit
def _term(log_ratio, q, p, column, parameter, table):
    return tl.where(p == 0.0, 0.0, p * log_ratio), q - p


@dataclass(frozen=True)
class ForwardKL(Loss):
    """KL(p || q) = sum_v p_v log(p_v / q_v) in nats, p the teacher and q the student.

    Equivalent to ``F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)``. Covers every mode of the
    teacher. ``0 log 0 = 0``; teacher mass on a student logit of -inf gives +inf. The gradient in log q is -p; the term
    returns q - p, which sums to zero.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    name: ClassVar[str] = "forward_kl"
    term = _term
    balanced: ClassVar[bool] = True

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return divergence_sum(log_p, log_q)
