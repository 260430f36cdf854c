"""Generalised Jensen-Shannon divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Loss, divergence_sum, in_open_unit_interval, jit, log_mixture, tl
from .mixture import against_mixture


@jit
def _term(log_ratio, q, p, column, parameter, table):
    log_p_over_m, log_q_over_m, _ = against_mixture(log_ratio, parameter)
    h = tl.where(q == 0.0, 0.0, (1.0 - parameter) * q * log_q_over_m)
    return tl.where(p == 0.0, 0.0, parameter * p * log_p_over_m) + h, h


@dataclass(frozen=True)
class JensenShannon(Loss):
    """beta KL(p || m) + (1 - beta) KL(q || m) in nats, with m = beta p + (1 - beta) q, p the teacher, q the student.

    Bounded by the entropy of (beta, 1 - beta), symmetric at ``beta=0.5``. ``0 < beta < 1``: divided by beta it tends
    to KL(p || q) as beta -> 0, divided by 1 - beta to KL(q || p) as beta -> 1; ask for those as ``ForwardKL()`` and
    ``ReverseKL()``. ``0 log 0 = 0`` and the value is always finite. The gradient in log q is
    (1 - beta) q log(q / m).

    Source: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024 (GKD), equation 1.
    """

    beta: float = 0.5
    name: ClassVar[str] = "jensen_shannon"
    term = _term

    def __post_init__(self) -> None:
        in_open_unit_interval("beta", self.beta, "use ForwardKL()", "use ReverseKL()")

    def parameter(self) -> float:
        return self.beta

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = log_mixture(log_p, log_q, self.beta)
        return self.beta * divergence_sum(log_p, log_m) + (1.0 - self.beta) * divergence_sum(log_q, log_m)
