"""A teacher that trains in the student's own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import arguments


class SideBySide:
    """Teacher and student in one run: on each batch the teacher makes a step, then teaches the student::

        both = online.SideBySide(teacher, torch.optim.AdamW(teacher.parameters()))
        both.step(x, labels)                                                           # in the student's loop
        loss = online.online_distillation(student(x), x, labels, both, progress=None)

    Equivalent to a `TeacherTrajectory` with a checkpoint of every step, recorded by a teacher that sees the student's
    batches, without any file.

    Args:
        teacher: the nn.Module to train, called as ``teacher(x)``.
        optimizer: an optimizer over its parameters.
        criterion: (teacher's logits, labels) -> 0-d loss; by default `torch.nn.functional.cross_entropy`.
        scheduler: of the learning rate, with a ``step()`` that is called after each step of the optimizer.

    Raises: TypeError, ValueError, RuntimeError where an argument breaks a rule above.

    Source: ours; the paper's algorithm (Harutyunyan et al., ICLR 2023, arXiv 2301.12245) keeps checkpoints.
    """

    def __init__(
        self,
        teacher: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        scheduler: Any = None,
    ) -> None:
        arguments.trainer(teacher, optimizer, criterion, scheduler)
        self.teacher, self.optimizer, self.scheduler = teacher, optimizer, scheduler
        self.criterion = F.cross_entropy if criterion is None else criterion

    def step(self, x: Any, labels: Tensor) -> Tensor:
        """One training step of the teacher on this batch, in train mode; its loss before the step, 0-d, detached."""
        self.teacher.train()
        with torch.enable_grad():
            loss = self.criterion(self.teacher(x), labels)
            arguments.teacher_loss(loss)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach()

    def at(self, progress: float | None = None) -> nn.Module:
        """The teacher as it is now, whatever the progress, in eval mode; its parameters go on requiring grad."""
        return self.teacher.eval()

    def state_dict(self) -> dict[str, Any]:
        """Teacher, optimizer and scheduler: with the student's own state, a run goes on as if not interrupted.

        As in PyTorch its tensors are those of the run, and change with it until they are saved.
        """
        parts = {"teacher": self.teacher, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: None if part is None else part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What does not fit raises ValueError, before anything is written."""
        arguments.saved(state, {"teacher", "optimizer", "scheduler"})
        if (state["scheduler"] is None) != (self.scheduler is None):
            without = "without" if state["scheduler"] is None else "with"
            raise ValueError(f"state must have a scheduler if and only if this object has, got one {without}")
        own, found = (_shapes(each) for each in (self.teacher.state_dict(), state["teacher"]))
        arguments.entries("state['teacher']", own, found)
        self.optimizer.load_state_dict(state["optimizer"])  # raises itself, unchanged, where the groups differ
        self.teacher.load_state_dict(state["teacher"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) if isinstance(value, Tensor) else () for name, value in state.items()}
