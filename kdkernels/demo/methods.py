"""The methods that the demo compares: one entry each, the first of them being what the others are measured against.

An entry says how its loss is made; the training loop, the choice of settings, the table and the picture know none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdkernels as kd

from . import auxiliary, online, ptloss, tgeo
from .training import Batch, Build, Criterion, Task

Setting = Mapping[str, float]
"""A point of a grid. ``lr`` and ``weight_decay`` (0.01 where absent) are the optimizer's, the rest the method's own."""


@dataclass(frozen=True)
class Method:
    name: str
    build: Build
    grid: tuple[Setting, ...]
    eager: Build | None = None
    """The same loss as a user would write it in PyTorch, only timed; None where there is nothing to compare."""
    inspect: Callable[[Task, nn.Module, Any], Any] | None = None
    """What is to be shown of a trained criterion: (task, student, criterion) -> finding."""


RATES = (1e-2, 3e-2)


def grid(**axes: tuple[float, ...]) -> tuple[Setting, ...]:
    """Every combination of the axes' values."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def cross_entropy(task: Task, setting: Setting, student: nn.Module) -> Criterion:
    return lambda student, batch: F.cross_entropy(student, batch.labels)


def distilled(name: str, loss: kd.Loss, eager: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """A loss of this package beside the cross-entropy, over the grid that all of them share."""

    def build(task: Task, setting: Setting, student: nn.Module) -> Criterion:
        criterion = kd.DistillationLoss(loss, alpha=setting["alpha"], temperature=setting["T"])
        return lambda student, batch: criterion(student, batch.teacher, batch.labels)

    def compose(task: Task, setting: Setting, student: nn.Module) -> Criterion:
        alpha, temperature = setting["alpha"], setting["T"]

        def criterion(student: Tensor, batch: Batch) -> Tensor:
            log_q = F.log_softmax(student / temperature, -1)
            log_p = F.log_softmax(batch.teacher / temperature, -1)
            soft = temperature**2 * eager(log_q, log_p)
            return alpha * soft + (1 - alpha) * F.cross_entropy(student, batch.labels)

        return criterion

    return Method(name, build, grid(T=(2.0, 4.0), alpha=(0.5, 0.9), lr=RATES), compose)


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def jensen_shannon(log_q: Tensor, log_p: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    divergences = (F.kl_div(log_m, log_x, log_target=True, reduction="batchmean") for log_x in (log_q, log_p))
    return 0.5 * sum(divergences)


# Every grid has as many points as the others: no method is given more tries.
METHODS = (
    Method("student alone", cross_entropy, grid(weight_decay=(0.01, 0.1, 0.3, 1.0), lr=RATES)),
    distilled("KD, forward KL", kd.ForwardKL(), forward_kl),
    distilled("reverse KL", kd.ReverseKL(), reverse_kl),
    distilled("Jensen-Shannon", kd.JensenShannon(), jensen_shannon),
    Method("PTLoss", ptloss.build, grid(T=(2.0, 4.0), alpha=(0.5, 0.9), lr=RATES), ptloss.compose),
    Method("TGeo-KD", tgeo.Criterion, grid(T=(2.0, 4.0), ratio_lr=(1e-3, 1e-2), lr=RATES), inspect=tgeo.alphas),
    Method("auxiliary KD", auxiliary.Criterion, grid(T=(2.0, 4.0), alpha=(0.5, 0.9), lr=RATES), auxiliary.Composed),
    Method("online KD", online.build, grid(T=(2.0, 4.0), alpha=(0.5, 0.9), lr=RATES), online.compose),
)
