"""The loss with an auxiliary variable beside its plain composition; the entries of its bank are the case's vocabulary.

Logits and features lie side by side in the case's student and teacher, (rows, COLUMNS), so that one gradient holds
both; its labels are the samples' numbers, which are those of entries too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd
from kdkernels.methods.auxiliary import InstanceBank, auxiliary_divergence

CLASSES, FEATURES = 100, 128
COLUMNS = CLASSES + FEATURES
SETTINGS = {"kappa": 0.1, "mixture": 0.5, "beta": 1.0, "temperature": 4.0}


def bank(entries: int, generator: torch.Generator, device: str) -> InstanceBank:
    features = torch.randn(entries, FEATURES, generator=generator)
    probs = torch.softmax(torch.randn(entries, CLASSES, generator=generator), -1)
    filled = InstanceBank(entries, FEATURES, CLASSES)
    filled.push(features, probs, torch.arange(entries))
    return filled.to(device)


def ours(teacher: Tensor, index: Tensor, filled: InstanceBank, backend: str) -> Callable[[Tensor], Tensor]:
    """The public call; the reference, which the oracle asks with float64 inputs, is the plain composition."""
    if backend == "reference":
        return lambda student: composition(student, teacher, index, filled.features, filled.probs, filled.index)
    zt, ht = teacher[:, :CLASSES], teacher[:, CLASSES:]

    def call(student: Tensor) -> Tensor:
        with kd.use_backend(backend):
            z, h = student[:, :CLASSES], student[:, CLASSES:]
            return auxiliary_divergence(z, zt, h, ht, filled, index=index, **SETTINGS).mean()

    return call


def composition(
    student: Tensor, teacher: Tensor, index: Tensor, features: Tensor, probs: Tensor, numbers: Tensor
) -> Tensor:
    """As a competent user writes it: one log_softmax per side over the bank, whose exponential is the posterior."""
    kappa, mixture, beta, temperature = SETTINGS.values()
    dtype = torch.promote_types(student.dtype, torch.float32)
    (z, h), (zt, ht) = (each.to(dtype).split([CLASSES, FEATURES], -1) for each in (student, teacher))
    features, probs = features.to(dtype), probs.to(dtype)
    own = index.unsqueeze(-1) == numbers
    low = torch.finfo(dtype).min  # minus infinity would make kl_div NaN
    log_w, log_v = (
        F.log_softmax((F.normalize(x, dim=-1) @ features.T / kappa).masked_fill(own, low), -1) for x in (h, ht)
    )
    p = (1 - mixture) * F.softmax(z / temperature, -1) + mixture * (log_w.exp() @ probs)
    logit = F.kl_div(p.log(), F.softmax(zt / temperature, -1), reduction="batchmean")
    feature = F.kl_div(log_w, log_v, reduction="batchmean", log_target=True)
    return temperature**2 * logit + beta * feature
