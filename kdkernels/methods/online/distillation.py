"""The loss of a student under the teacher of its moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ... import api, checks
from ...losses import ForwardKL, Loss
from . import arguments
from .side_by_side import SideBySide

_FORWARD_KL = ForwardKL()
_IGNORED = -100  # the label of a row that counts nowhere, as in kdkernels.distillation


class Teacher(Protocol):
    """What can be asked for the teacher of a moment: `TeacherTrajectory`, `SideBySide`, or a class of one's own."""

    def at(self, progress: Any) -> nn.Module: ...


def online_distillation(
    student_logits: Tensor,
    x: Any,
    labels: Tensor,
    teacher: Teacher,
    progress: float | None,
    loss: Loss | Callable[[Tensor, Tensor], Tensor] = _FORWARD_KL,
    *,
    alpha: float | Tensor = 0.9,
    temperature: float = 4.0,
    **keywords: Any,
) -> Tensor:
    """`kdkernels.distillation`, alpha T^2 D + (1 - alpha) CE, from the teacher of the student's own moment.

    Equivalent to::

        with torch.no_grad():
            teacher_logits = teacher.at(progress).eval()(x)
        kd.distillation(student_logits, teacher_logits, labels, loss, alpha=alpha, temperature=temperature)

    after which the module is put back into the mode in which ``at`` gave it (a `SideBySide`: into that before). In
    an existing loop, with checkpoints of the teacher's training::

        trajectory = online.TeacherTrajectory("teacher", teacher)     # before it
        progress = step / steps                                       # in it: the part that is done
        loss = online.online_distillation(student(x), x, labels, trajectory, progress)

    and with a teacher that trains beside the student::

        both = online.SideBySide(teacher, optimizer_of_teacher)       # before it
        both.step(x, labels)                                          # in it
        loss = online.online_distillation(student(x), x, labels, both, progress=None)

    Args:
        student_logits: (..., vocab), float32, float16, bfloat16 or float64.
        x: the batch, given to the teacher as it is.
        labels: int64 (...), in [0, vocab) or -100.
        teacher: anything with a method ``at(progress) -> nn.Module``.
        progress: in [0, 1], the part of the student's training that is done; `SideBySide` does not look at it.
        loss: a loss of this package, or a function (student logits, teacher logits) -> one value per row, e.g.
            `logit_mse`: then the result is the mean over the counted rows of alpha * function + (1 - alpha) * CE, which
            the temperature does not enter. Zeros reach it in place of rows that count nowhere or whose alpha is 0.
        alpha: share of the teacher: a number in [0, 1], or one value per row.
        temperature: T > 0 (paper: 1 or 4).
        keywords: the others of `kdkernels.distillation`; with a function only ``reduction="mean"``.

    Returns: as `kdkernels.distillation`, 0-d unless a reduction says otherwise; a loss of this package is in nats times
    T^2. A row whose label is -100 counts in no term, whatever its logits are, and a term whose share is 0 in no row.

    Raises: TypeError, ValueError, RuntimeError as `kdkernels.distillation` and the teacher do.

    Source: algorithm 1 of Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), as we recall it: softened targets or MSE of
    the logits. Our default of alpha keeps a share for the labels.
    """
    arguments.teacher(teacher)
    arguments.loss(loss)
    checks.logits("student_logits", student_logits)
    checks.temperature(temperature)
    if not isinstance(loss, Loss):
        arguments.keywords(keywords)
        checks.labels(labels, student_logits)
        checks.alpha(alpha, student_logits)
    with torch.no_grad(), _asked(teacher, progress) as module:
        teacher_logits = module(x)
    arguments.teacher_logits(teacher_logits)
    teacher_logits = teacher_logits.detach()  # a teacher may return a parameter or x itself, which may require grad
    if isinstance(loss, Loss):
        options = {"alpha": alpha, "temperature": temperature, **keywords}
        return api.distillation(student_logits, teacher_logits, labels, loss, **options)
    return _averaged(loss, student_logits, teacher_logits, labels, alpha)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the last dimension of (student - teacher)^2, one value per row.

    Equivalent to ``F.mse_loss(student.float(), teacher.float(), reduction="none").mean(-1)``.

    Args:
        student: logits (..., vocab), float32, float16, bfloat16 or float64.
        teacher: logits of the same shape, which must not require grad.

    Returns: (...), float32 (float64 where an input is).

    Raises: TypeError, ValueError where an argument breaks a rule above.

    Source: the other loss of Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), as we recall it; the mean is ours.
    """
    checks.pair(student, teacher, None)
    wide = _wide(student, teacher)
    return (student.to(wide) - teacher.to(wide)).square().mean(-1)


@contextmanager
def _asked(teacher: Teacher, progress: float | None) -> Iterator[nn.Module]:
    """The module in eval mode, afterwards as it was before it was asked for: a teacher that trains may go on."""
    modes = _modes(teacher.teacher) if isinstance(teacher, SideBySide) else None
    module = teacher.at(progress)
    arguments.module("teacher.at(progress)", module)
    modes = _modes(module) if modes is None else modes
    try:
        yield module.eval()
    finally:
        for each, training in modes:
            each.training = training


def _modes(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(each, each.training) for each in module.modules()]


def _averaged(
    function: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float | Tensor,
) -> Tensor:
    """The mean over the counted rows; a row enters neither value nor gradient of a term in which it has no share."""
    checks.pair(student, teacher, None)
    options = {"dtype": _wide(student, teacher), "device": student.device}
    share = alpha.to(**options) if isinstance(alpha, Tensor) else torch.full((), alpha, **options)
    share = share.expand(labels.shape)
    counted = labels != _IGNORED
    asked = counted & (share > 0)
    # Zeros go in, since a gradient that is not finite stays so when it is multiplied by the zero of a `where` behind.
    soft = function(*(torch.where(asked[..., None], each, 0.0) for each in (student, teacher)))
    arguments.rows(soft, student)
    soft = torch.where(asked, share * soft, 0.0).sum() / counted.sum().clamp(min=1)
    return soft + api.distillation(student, teacher, labels, alpha=0.0, weight=1.0 - share)


def _wide(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
