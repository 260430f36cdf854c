"""PTLoss in the demo: the coefficients are searched on the validation images, as the other settings are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdkernels as kd
from kdkernels.methods import pt

from .training import Batch, Criterion, Task

DRAWS = 20
"""Per order, of five: the paper takes 100, which change little here and take five times as long."""


def coefficients(task: Task, temperature: float) -> Tensor:
    """The best draws for this task's teacher at this temperature: searched once, then remembered."""
    if temperature not in task.searched:
        validation = task.splits.validation
        with torch.no_grad():
            logits = task.teacher(validation.images)
        generator = torch.Generator().manual_seed(task.seed)
        found = pt.search_coefficients(
            logits, validation.labels, draws=DRAWS, temperature=temperature, generator=generator, progress=False
        )
        task.searched[temperature] = found.coefficients
    return task.searched[temperature]


def build(task: Task, setting: Mapping[str, float], student: nn.Module) -> Criterion:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the paper's range reaches below -1/m, of which a loss would tell at each seed
        loss = kd.Perturbed(coefficients(task, setting["T"]))
    criterion = kd.DistillationLoss(loss, alpha=setting["alpha"], temperature=setting["T"])
    return lambda logits, batch: criterion(logits, batch.teacher, batch.labels)


def compose(task: Task, setting: Mapping[str, float], student: nn.Module) -> Criterion:
    """The same in plain PyTorch, for the clock."""
    eps, alpha, temperature = coefficients(task, setting["T"]), setting["alpha"], setting["T"]
    orders = torch.arange(1, len(eps) + 1)

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        log_q = F.log_softmax(logits / temperature, -1)
        p = F.softmax(batch.teacher / temperature, -1)
        series = (eps * (1 - log_q.exp()).unsqueeze(-1) ** orders).sum(-1)
        soft = F.kl_div(log_q, p, reduction="batchmean") + (p * series).sum(-1).mean()
        return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(logits, batch.labels)

    return criterion
