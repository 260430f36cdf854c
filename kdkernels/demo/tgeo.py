"""TGeo-KD in the demo: alpha is learnt, one per image, for the loss on the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdkernels.methods import tgeo

from .training import Batch, Task

HIDDEN = 32
EVERY = 5
"""The controller learns in each fifth step of the student."""
VALIDATION_BATCH = 64


class Criterion:
    """The distillation loss with the controller's alpha; ahead of a step, the controller's own."""

    def __init__(self, task: Task, setting: Mapping[str, float], student: nn.Module) -> None:
        with torch.no_grad():
            labelled = task.teacher(task.labelled.images)
        mean = tgeo.class_means(labelled, task.labelled.labels, num_classes=10)
        self.ratio = tgeo.FusionRatio(10, HIDDEN, class_mean=mean)
        optimizer = torch.optim.Adam(self.ratio.parameters(), setting["ratio_lr"])
        self.bilevel = tgeo.BilevelStep(
            student, self.ratio, optimizer, inner_lr=setting["lr"], temperature=setting["T"], every=EVERY
        )
        self.validation = task.splits.validation
        self.generator = torch.Generator().manual_seed(task.seed)

    def before(self, batch: Batch) -> None:
        self.bilevel.step((batch.images, batch.teacher, batch.labels), self.some)

    def some(self) -> tuple[Tensor, Tensor]:
        """A batch of validation images and their labels."""
        rows = torch.randint(len(self.validation), (VALIDATION_BATCH,), generator=self.generator)
        return self.validation.images[rows], self.validation.labels[rows]

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.bilevel.loss(logits, batch.teacher, batch.labels)


class Alphas(NamedTuple):
    """alpha of every test image, by whether the teacher's largest logit is the image's label."""

    right: list[float]
    wrong: list[float]


@torch.no_grad()
def alphas(task: Task, student: nn.Module, criterion: Criterion) -> Alphas:
    images, labels = task.splits.test.images, task.splits.test.labels
    teacher = task.teacher(images)
    alpha = criterion.ratio(student(images), teacher, labels)
    right = teacher.argmax(-1) == labels
    return Alphas(alpha[right].tolist(), alpha[~right].tolist())
