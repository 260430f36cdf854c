"""Auxiliary KD in the demo: the student also learns which of the teacher's past images a new one resembles."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkernels.methods import auxiliary

from . import networks
from .training import Batch, Task

CAPACITY = 512
"""Each of the 50 images about ten times, as it was shifted then."""
MIXTURE = 0.2
"""Of 0.2 and 0.5 the better by validation accuracy."""
FEATURES = 128
"""Of the student's last layer as of the teacher's."""


class Criterion(nn.Module):
    """alpha times the loss with the bank, the rest the cross-entropy; the projection is trained along."""

    def __init__(self, task: Task, setting: Mapping[str, float], student: nn.Module) -> None:
        super().__init__()
        self.alpha, self.temperature = setting["alpha"], setting["T"]
        self.distil = networks.seeded(self.criterion, task.seed)  # the clock compares two with one projection

    def criterion(self) -> nn.Module:
        settings = {"capacity": CAPACITY, "mixture": MIXTURE, "temperature": self.temperature}
        return auxiliary.AuxiliaryKD(FEATURES, FEATURES, 10, **settings)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        soft = self.distil(logits, batch.teacher, batch.features, batch.teacher_features, batch.index)
        return self.alpha * soft + (1 - self.alpha) * F.cross_entropy(logits, batch.labels)


class Composed(Criterion):
    """The same in plain PyTorch, for the clock."""

    def __init__(self, task: Task, setting: Mapping[str, float], student: nn.Module) -> None:
        super().__init__(task, setting, student)
        self.bank = torch.empty(0, FEATURES), torch.empty(0, 10), torch.empty(0, dtype=torch.int64)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        kappa, mixture, beta, temperature = self.distil.settings
        t, v = F.softmax(batch.teacher / temperature, -1), F.normalize(batch.teacher_features, dim=-1)
        fresh = zip(self.bank, (v, t, batch.index), strict=True)
        features, probs, index = self.bank = tuple(torch.cat(pair)[-CAPACITY:] for pair in fresh)
        h = F.normalize(self.distil.projection(batch.features), dim=-1)
        own = batch.index.unsqueeze(-1) == index
        log_w, log_v = (F.log_softmax((x @ features.T / kappa).masked_fill(own, -1e9), -1) for x in (h, v))
        p = (1 - mixture) * F.softmax(logits / temperature, -1) + mixture * (log_w.exp() @ probs)
        soft = temperature**2 * F.kl_div(p.log(), t, reduction="batchmean")
        soft = soft + beta * F.kl_div(log_w, log_v, log_target=True, reduction="batchmean")
        return self.alpha * soft + (1 - self.alpha) * F.cross_entropy(logits, batch.labels)
