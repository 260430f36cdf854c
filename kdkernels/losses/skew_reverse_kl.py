"""Skew reverse Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Loss, divergence_sum, in_open_unit_interval, jit, log_mixture, tl
from .mixture import against_mixture


@jit
def _term(log_ratio, q, p, column, parameter, table):
    _, log_q_over_m, gap = against_mixture(log_ratio, 1.0 - parameter)
    f = tl.where(q == 0.0, 0.0, q * log_q_over_m)
    return f, tl.where(q == 0.0, 0.0, f + parameter * (1.0 - parameter) * q * gap)


@dataclass(frozen=True)
class SkewReverseKL(Loss):
    """KL(q || m) in nats with m = alpha q + (1 - alpha) p, p the teacher and q the student.

    At most -log(alpha), so finite everywhere; ``0 < alpha < 1``: at 0 it would be ``ReverseKL()``, at 1 it is zero.
    ``0 log 0 = 0``. The gradient in log q is q (log(q / m) + 1 - alpha q / m); the term subtracts (1 - alpha) q.

    Source: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, section 3.1.
    """

    alpha: float = 0.1
    name: ClassVar[str] = "skew_reverse_kl"
    term = _term

    def __post_init__(self) -> None:
        in_open_unit_interval("alpha", self.alpha, "use ReverseKL()", "the loss would be zero")

    def parameter(self) -> float:
        return self.alpha

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return divergence_sum(log_q, log_mixture(log_q, log_p, self.alpha))
