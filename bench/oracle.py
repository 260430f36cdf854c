"""The float64 answer of a case, and whether a contender's result agrees with it: what disagrees gets no number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cases import DISTINCT_ROWS, Case, Inputs
from .contenders import ours

# Relative bounds. All arithmetic is to be float32 (about 1e-6 here, up to 1e-4 through cancelling sums of 128k terms);
# what is stored as bfloat16 is rounded to 2^-9, about 2e-3 in the L2 norm.
_VALUE_BOUND = 2e-4
_TENSOR_BOUND = {"float32": 2e-4, "bfloat16": 6e-3}


@dataclass(frozen=True)
class Answer:
    value: Tensor
    """A scalar, or the output's first DISTINCT_ROWS rows; float64."""
    gradient: Tensor | None
    """The first DISTINCT_ROWS rows; the others repeat them."""


def answer(case: Case, inputs: Inputs) -> Answer:
    """The reference backend on the rows that differ; the mean over all rows is the mean over these."""
    student, teacher, labels = (tensor[:DISTINCT_ROWS] for tensor in (inputs.student, inputs.teacher, inputs.labels))
    student = student.double().requires_grad_(case.backward)
    call = ours(case, replace(inputs, student=student, teacher=teacher.double(), labels=labels), backend="reference")
    value = call(student)
    if not case.backward:
        return Answer(value.detach(), None)
    value.backward(None if inputs.upstream is None else inputs.upstream[:DISTINCT_ROWS].double())
    share = 1.0 if value.dim() else DISTINCT_ROWS / case.rows
    return Answer(value.detach(), student.grad * share)


def error(expected: Answer, value: Tensor, gradient: Tensor | None) -> float:
    """The largest relative error, in the L2 norm: of the value, and of the gradient's first and last rows."""
    pairs = [(value[-DISTINCT_ROWS:] if value.dim() else value, expected.value)]
    if expected.gradient is not None:
        pairs += [(rows, expected.gradient) for rows in (gradient[:DISTINCT_ROWS], gradient[-DISTINCT_ROWS:])]
    return max(float(torch.dist(got.double(), want) / want.norm()) for got, want in pairs)


def bound(case: Case) -> float:
    value = _VALUE_BOUND if case.scalar else _TENSOR_BOUND[case.output[1]]
    return max(value, _TENSOR_BOUND[case.dtype]) if case.backward else value
