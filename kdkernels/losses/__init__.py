"""The losses, and the registry that tests, benchmarks and backends iterate over."""

from __future__ import annotations

from .base import Loss
from .forward_kl import ForwardKL
from .jensen_shannon import JensenShannon
from .perturbed import Perturbed
from .reverse_kl import ReverseKL
from .skew_kl import SkewKL
from .skew_reverse_kl import SkewReverseKL
from .total_variation import TotalVariation

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss for loss in (ForwardKL, ReverseKL, JensenShannon, TotalVariation, SkewKL, SkewReverseKL, Perturbed)
}

__all__ = [
    "LOSSES",
    "ForwardKL",
    "JensenShannon",
    "Loss",
    "Perturbed",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
]
