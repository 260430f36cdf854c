"""What a student has still to learn: targets minus its present outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import api
from . import arguments


@torch.no_grad()
def residual(
    student: Tensor,
    teacher_or_labels: Tensor,
    *,
    space: str = "probabilities",
    temperature: float = 1.0,
) -> Tensor:
    """The targets minus the student's present outputs, for `supervision_complexity`.

    Equivalent to one of::

        softmax(teacher / T) - softmax(student / T)         # logits of a teacher (n, d); the default
        F.one_hot(labels, d) - softmax(student)             # integer labels (n,)
        teacher - student                                   # space="logits"

    by `kdkernels.softmax`, without a tensor of one-hot rows. Nothing of the result requires grad.

    Args:
        student: logits (n, d), float32, float16, bfloat16 or float64.
        teacher_or_labels: logits of student's shape, or integers (n,) in [0, d).
        space: "probabilities" or "logits"; the latter for a teacher only.
        temperature: T > 0, of both sides; 1 with labels and in the space of logits.

    Returns:
        (n, d), float32, or float64 where an argument is.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value; logits that make the result infinite or NaN.

    Source: Harutyunyan et al., ICLR 2023 (arXiv 2301.12245), as recalled: the complexity is that of the residual at the
    student's present weights. Probabilities as the default space are ours.
    """
    arguments.space(space, temperature)
    arguments.outputs_of_student(student)
    hard = isinstance(teacher_or_labels, Tensor) and teacher_or_labels.dtype in arguments.LABEL_DTYPES
    if hard:
        arguments.labels(teacher_or_labels, student, space, temperature)
        missing = api.softmax(_wide(student)).neg_()
        index = teacher_or_labels.long().unsqueeze(-1)
        missing.scatter_add_(-1, index, torch.ones_like(index, dtype=missing.dtype))
    else:
        arguments.teacher(teacher_or_labels, student)
        sides = _wide(teacher_or_labels), _wide(student)
        if space == "probabilities":
            sides = tuple(api.softmax(side, temperature=temperature) for side in sides)
        missing = sides[0] - sides[1]
    arguments.finite_residual(missing)
    return missing


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least: probabilities rounded to half precision would be a residual of rounding errors."""
    return logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
