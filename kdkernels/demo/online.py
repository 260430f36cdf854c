"""Online KD in the demo: at each step the teacher is the one of the same share of its own training."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors  # noqa: F401 (of the checkpoints: that it is missing is told before a teacher has been trained)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkernels.methods import online

from .training import Batch, Criterion, Task


def build(task: Task, setting: Mapping[str, float], student: nn.Module) -> Criterion:
    options = {"alpha": setting["alpha"], "temperature": setting["T"]}

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        asked = (batch.images, batch.labels, task.trajectory, batch.progress)
        return online.online_distillation(logits, *asked, **options)

    return criterion


def compose(task: Task, setting: Mapping[str, float], student: nn.Module) -> Criterion:
    """The same loss in plain PyTorch, from the same teachers, for the clock."""
    alpha, temperature = setting["alpha"], setting["T"]

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = task.trajectory.at(batch.progress)(batch.images)
        log_q, log_p = (F.log_softmax(each / temperature, -1) for each in (logits, teacher))
        soft = temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return alpha * soft + (1 - alpha) * F.cross_entropy(logits, batch.labels)

    return criterion
