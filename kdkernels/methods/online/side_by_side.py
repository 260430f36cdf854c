"""A teacher that trains in the student's own loop."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import arguments, names, states


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
        torch.clear_autocast_cache()  # copies of the weights before the step would teach, and train on, as they were
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach()

    def at(self, progress: float | None = None) -> nn.Module:
        """The teacher as it is now, whatever the progress, in eval mode; its parameters go on requiring grad."""
        return self.teacher.eval()

    def state_dict(self) -> dict[str, Any]:
        """Teacher, optimizer and scheduler: with the student's own state, a run goes on as if not interrupted.

        As in PyTorch its tensors are those of the run, and change with it until they are saved. The names are those of
        the teacher as written, also where it, or a part of it, is compiled or it is data parallel.
        """
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"teacher": _state(self.teacher), "optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What does not fit raises TypeError or ValueError, and nothing is changed.

        That an optimizer or scheduler is of the same kind is seen by the names of its settings. Their values are those
        of the state afterwards, as in PyTorch.
        """
        states.saved(state, scheduler=self.scheduler is not None)
        teacher = states.plain("state['teacher']", state["teacher"])
        states.saved_teacher(_state(self.teacher), teacher)
        states.saved_optimizer(self.optimizer.param_groups, state["optimizer"])
        with self._unchanged_on_error():
            if self.scheduler is not None:
                states.saved_scheduler(self.scheduler.state_dict(), state["scheduler"])
                with states.loaded("scheduler"):
                    self.scheduler.load_state_dict(state["scheduler"])
            with states.loaded("optimizer"):
                self.optimizer.load_state_dict(state["optimizer"])
            _load(self.teacher, teacher, getattr(state["teacher"], "_metadata", {}))
        torch.clear_autocast_cache()

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """For optimizer and scheduler, which find out while they load whether they can; no state is copied for it."""
        kept = self.optimizer.state, self.optimizer.param_groups  # a load puts others in their place
        schedule = None if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict())
        try:
            yield
        except BaseException:
            self.optimizer.state, self.optimizer.param_groups = kept
            if schedule is not None:
                self.scheduler.load_state_dict(schedule)
            raise


def _state(module: nn.Module) -> OrderedDict[str, Any]:
    """Its state_dict under plain names, with the versions of its parts, which are an attribute beside the entries."""
    own = names.bare(module).state_dict()
    state = OrderedDict(states.plain("teacher", own))
    state._metadata = OrderedDict((names.plain(prefix), each) for prefix, each in getattr(own, "_metadata", {}).items())
    return state


def _load(module: nn.Module, found: Mapping[str, Any], versions: Mapping[str, Any]) -> None:
    inner = names.bare(module)
    own = inner.state_dict()
    state = OrderedDict((name, found[names.plain(name)]) for name in own)
    state._metadata = OrderedDict(
        (prefix, versions.get(names.plain(prefix), {})) for prefix in getattr(own, "_metadata", ())
    )
    inner.load_state_dict(state)
