"""Training a teacher, and a student with any loss; neither loop knows a method."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from kdkernels.methods.online import TeacherTrajectory

from . import networks
from .digits import Digits, Splits, shifted
from .protocol import Protocol


class Batch(NamedTuple):
    """Images (n, 1, 8, 8), their labels (n,) and the teacher's logits for those very images (n, 10)."""

    images: Tensor
    labels: Tensor
    index: Tensor
    """(n,), which of the labelled images they are."""
    teacher: Tensor
    teacher_features: Tensor
    """(n, 128), what the teacher's last layer sees of them."""
    progress: float
    """The part of the training that is done with this step: above 0, and 1 in the last."""
    features: Tensor | None = None
    """(n, 128), what the student's last layer sees of them; None ahead of its forward pass."""


class Task(NamedTuple):
    """What all methods of one seed share: the batches are made once and kept, so that they cannot differ."""

    seed: int
    splits: Splits
    labelled: Digits
    teacher: nn.Module
    trajectory: TeacherTrajectory
    """The teacher after each epoch of its own training."""
    batches: list[Batch]
    """All steps of a training, in their order."""
    searched: dict[float, Tensor]
    """PTLoss's coefficients by temperature, from the first method that asks for them."""


class Criterion(Interface):
    """What a method trains a student with. Where it is an nn.Module, its parameters are trained along.

    One that has a method ``before(batch)`` is called so ahead of the student's forward pass in each step.
    """

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss, 0-d, of student logits (n, 10)."""


Build = Callable[[Task, Any, nn.Module], Criterion]
"""(task, setting, student) -> criterion."""


def make_task(splits: Splits, seed: int, protocol: Protocol) -> Task:
    trajectory = temporary_trajectory()
    teacher = train_teacher(splits.train, seed, protocol, trajectory)
    labelled, _ = splits.train.split(protocol.labelled, seed)
    numbered = Digits(labelled.images, torch.arange(len(labelled)))
    pairs = list(shuffled(numbered, protocol.batch, protocol.epochs, seed))
    batches = []
    for done, (images, index) in enumerate(pairs, 1):
        with torch.no_grad():
            logits, features = networks.asked(teacher, images)
        batches.append(Batch(images, labelled.labels[index], index, logits, features, done / len(pairs)))
    return Task(seed, splits, labelled, teacher, trajectory, batches, {})


def temporary_trajectory() -> TeacherTrajectory:
    """In a folder that goes when it goes."""
    folder = tempfile.mkdtemp(prefix="kdkernels-demo-")
    trajectory = TeacherTrajectory(folder, networks.seeded(networks.teacher, 0))
    weakref.finalize(trajectory, shutil.rmtree, folder, ignore_errors=True)
    return trajectory


def shuffled(data: Digits, size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shifted images and labels, every image once in an epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).split(size):
            yield shifted(data.images[rows], generator), data.labels[rows]


def train_teacher(
    train: Digits, seed: int, protocol: Protocol, trajectory: TeacherTrajectory | None = None
) -> nn.Module:
    """The teacher after its last epoch, ready to be asked; the trajectory gets it after each."""
    steps = -(-len(train) // protocol.teacher_batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the weights and of the dropout
        model = networks.teacher()
        optimizer = AdamW(model.parameters(), protocol.teacher_lr)
        schedule = CosineAnnealingLR(optimizer, protocol.teacher_epochs * steps)
        batches = shuffled(train, protocol.teacher_batch, protocol.teacher_epochs, seed)
        for done, (images, labels) in enumerate(batches, 1):
            step(optimizer, schedule, F.cross_entropy(model(images), labels))
            if trajectory is not None and done % steps == 0:
                trajectory.record(done, model)
    return model.eval()


def train_student(
    task: Task,
    build: Build,
    setting: Any,
    observe: Callable[[int, nn.Module, Tensor, Batch], None] | None = None,
) -> tuple[nn.Module, Criterion]:
    """The student after its last step, and what it was trained with.

    ``observe`` is shown (steps done, student, logits, batch) after each step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        student = networks.student()
        criterion = build(task, setting, student)  # after the student, so that no method changes its weights
        before = getattr(criterion, "before", lambda batch: None)
        extra = criterion.parameters() if isinstance(criterion, nn.Module) else ()
        decay = setting.get("weight_decay", 0.01)
        optimizer = AdamW([*student.parameters(), *extra], setting["lr"], weight_decay=decay)
        schedule = CosineAnnealingLR(optimizer, len(task.batches))
        for done, batch in enumerate(task.batches, 1):
            before(batch)
            logits, features = networks.asked(student, batch.images)
            step(optimizer, schedule, criterion(logits, batch._replace(features=features)))
            if observe is not None:
                observe(done, student, logits.detach(), batch._replace(features=features.detach()))
    return student, criterion


def step(optimizer: torch.optim.Optimizer, schedule: CosineAnnealingLR, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percent of the images whose largest logit is their label's."""
    return 100 * (model(data.images).argmax(-1) == data.labels).float().mean().item()
