"""Skew Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Loss, divergence_sum, in_open_unit_interval, jit, log_mixture, tl
from .mixture import against_mixture


@jit
def _term(log_ratio, q, p, column, parameter, table):
    student = 1.0 - parameter
    log_p_over_m, _, gap = against_mixture(log_ratio, parameter)
    f = tl.where(p == 0.0, 0.0, p * log_p_over_m)
    return f, tl.where(q == 0.0, 0.0, -student * student * q * gap)


@dataclass(frozen=True)
class SkewKL(Loss):
    """KL(p || m) in nats with m = alpha p + (1 - alpha) q, p the teacher and q the student.

    At most -log(alpha), so finite everywhere; ``0 < alpha < 1``: at 0 it would be ``ForwardKL()``, at 1 it is zero.
    ``0 log 0 = 0``. The gradient in log q is -(1 - alpha) p q / m; the term adds (1 - alpha) q to it.

    Source: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, section 3.1.
    """

    alpha: float = 0.1
    name: ClassVar[str] = "skew_kl"
    term = _term

    def __post_init__(self) -> None:
        in_open_unit_interval("alpha", self.alpha, "use ForwardKL()", "the loss would be zero")

    def parameter(self) -> float:
        return self.alpha

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return divergence_sum(log_p, log_mixture(log_p, log_q, self.alpha))
