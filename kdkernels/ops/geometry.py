"""The trilateral operators: distances of both rows, the label and its class mean, and their backward for any upstream.

Forward leaves ten numbers per row; with them backward is one walk over the logits and one write.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, STATISTICS, traced
from ..backends.reference import accumulation_dtype
from ..rows import as_rows, uneven, written_rows
from .shared import empty_gradient, followed, once, register


class Edges(NamedTuple):
    """One call of the operator: everything but the student."""

    teacher: Tensor
    labels: Tensor
    """(rows,) int64."""
    class_mean: Tensor | None
    squared: bool
    ignore_index: int
    vocab: int
    backend: str

    def piece(self, index: int, pieces: int) -> Edges:
        """The part that belongs to ``student[index]``."""
        rows = self.labels.shape[0] // pieces
        return self._replace(teacher=self.teacher[index], labels=self.labels[index * rows : (index + 1) * rows])


def trilateral(student: Tensor, edges: Edges) -> Tensor:
    """Distances (..., 3), with a class mean (..., 5)."""
    needs_gradient = student.requires_grad and torch.is_grad_enabled()
    if traced(student, edges.teacher):
        return torch.ops.kdkernels.trilateral.default(student, *edges, needs_gradient)[0]
    if needs_gradient:
        return _Trilateral.apply(student, edges)
    return _trilateral(student, edges, None)


def _trilateral(student: Tensor, edges: Edges, statistics: Tensor | None) -> Tensor:
    columns = 3 if edges.class_mean is None else 5
    if uneven(student) or uneven(edges.teacher):  # logits[:, :-1]: no single stride leads from row to row
        pieces, rows = student.shape[0], math.prod(student.shape[1:-1])
        parts = [None if statistics is None else statistics[i * rows : (i + 1) * rows] for i in range(pieces)]
        return torch.stack([_trilateral(student[i], edges.piece(i, pieces), parts[i]) for i in range(pieces)])
    distances = KERNEL_BACKENDS[edges.backend].trilateral(
        as_rows(student, edges.vocab),
        as_rows(edges.teacher, edges.vocab),
        edges.labels.contiguous(),
        _table(edges),
        statistics,
        squared=edges.squared,
        ignore_index=edges.ignore_index,
    )
    return distances.view(*student.shape[:-1], columns)


def _trilateral_backward(
    student: Tensor, edges: Edges, statistics: Tensor, distances: Tensor, upstream: Tensor, gradient: Tensor
) -> None:
    if uneven(student) or uneven(edges.teacher):
        pieces, rows = student.shape[0], math.prod(student.shape[1:-1])
        for i in range(pieces):
            part = statistics[i * rows : (i + 1) * rows]
            piece = edges.piece(i, pieces)
            _trilateral_backward(student[i], piece, part, distances[i], upstream[i], gradient[i])
        return
    KERNEL_BACKENDS[edges.backend].trilateral_backward(
        as_rows(student, edges.vocab),
        as_rows(edges.teacher, edges.vocab),
        edges.labels.contiguous(),
        _table(edges),
        statistics,
        distances.reshape(-1, distances.shape[-1]).contiguous(),
        upstream.reshape(-1, upstream.shape[-1]).contiguous(),
        written_rows(gradient, edges.vocab),
        squared=edges.squared,
        ignore_index=edges.ignore_index,
    )


def _table(edges: Edges) -> Tensor | None:
    return None if edges.class_mean is None else as_rows(edges.class_mean, edges.vocab)


def _empty_statistics(student: Tensor, edges: Edges) -> Tensor:
    dtype = accumulation_dtype(student, edges.teacher)
    return student.new_empty((math.prod(student.shape[:-1]), STATISTICS), dtype=dtype)


class _Trilateral(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, edges: Edges) -> Tensor:
        statistics = _empty_statistics(student, edges)
        distances = _trilateral(student, edges, statistics)
        ctx.edges = edges
        ctx.save_for_backward(student, statistics, distances, *(each for each in edges[:3] if followed(each)))
        return distances

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        student, statistics, distances, *_ = ctx.saved_tensors
        gradient = empty_gradient(student)
        arguments = (ctx.edges, statistics, distances.detach(), upstream.detach(), gradient)
        _trilateral_backward(student.detach(), *arguments)
        return once(gradient, student), None


def _operator(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    edges, needs_gradient = Edges(*arguments[:-1]), arguments[-1]
    statistics = _empty_statistics(student, edges) if needs_gradient else None
    distances = _trilateral(student, edges, statistics)
    return distances, student.new_empty(0) if statistics is None else statistics


def _operator_fake(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    edges, needs_gradient = Edges(*arguments[:-1]), arguments[-1]
    dtype = accumulation_dtype(student, edges.teacher)
    distances = student.new_empty((*student.shape[:-1], 3 if edges.class_mean is None else 5), dtype=dtype)
    return distances, _empty_statistics(student, edges) if needs_gradient else student.new_empty(0)


def _operator_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    student, *arguments = inputs
    edges = Edges(*arguments[:-1])
    ctx.set_materialize_grads(False)
    ctx.rest = edges[3:]
    ctx.save_for_backward(student, *edges[:3], *output)


def _operator_backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    nothing = (None,) * (len(Edges._fields) + 1)
    if upstream is None:
        return None, *nothing
    student, *tensors, distances, statistics = ctx.saved_tensors
    gradient = torch.ops.kdkernels.trilateral_backward.default(
        student.detach(), *tensors, *ctx.rest, statistics, distances.detach(), upstream.detach()
    )
    return once(gradient, student), *nothing


def _backward_operator(student: Tensor, *arguments: Any) -> Tensor:
    gradient = empty_gradient(student)
    fields = len(Edges._fields)
    _trilateral_backward(student, Edges(*arguments[:fields]), *arguments[fields:], gradient)
    return gradient


_EDGES = "Tensor teacher, Tensor labels, Tensor? class_mean, bool squared, int ignore_index, SymInt vocab, str backend"

register(
    f"trilateral(Tensor student, {_EDGES}, bool needs_gradient) -> (Tensor, Tensor)",
    _operator,
    fake=_operator_fake,
    backward=_operator_backward,
    setup_context=_operator_setup,
)
register(
    f"trilateral_backward(Tensor student, {_EDGES}, Tensor statistics, Tensor distances, Tensor upstream) -> Tensor",
    _backward_operator,
    fake=lambda student, *_: empty_gradient(student),
)
