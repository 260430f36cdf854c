"""The trilateral operators: distances of both rows, the label and its class mean, and their backward for any upstream.

Forward leaves ten numbers per row; with them backward is one walk over the logits and one write.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, STATISTICS, traced
from ..backends.calls import Trilateral
from ..backends.reference import accumulation_dtype
from ..checks import operands
from ..rows import as_rows, reshaped, uneven, vector, written_rows
from .saved import form, restored
from .shared import by_address, empty_gradient, first_order, register, watched, watched_in_graph
from .wire import Wire

WIRE = Wire(Trilateral)


def trilateral(student: Tensor, teacher: Tensor, class_mean: Tensor | None, call: Trilateral) -> Tensor:
    """Distances (..., 3), with a class mean (..., 5)."""
    if traced(student, teacher, class_mean, call.labels):
        teacher, class_mean, *tensors = watched_in_graph(teacher, class_mean, *call[: WIRE.tensors])
        packed = WIRE.pack(WIRE.with_tensors(call, tensors))
        return torch.ops.kdkernels.trilateral.default(student, teacher, class_mean, *packed)[0]
    if student.requires_grad and torch.is_grad_enabled():
        return _Trilateral.apply(student, (teacher, class_mean, call))
    return _walk(student, teacher, class_mean, call, None)


def _walk(
    student: Tensor, teacher: Tensor, class_mean: Tensor | None, call: Trilateral, statistics: Tensor | None
) -> Tensor:
    columns = 3 if class_mean is None else 5
    if uneven(student) or uneven(teacher):  # logits[:, :-1]: no single stride leads from row to row
        pieces = [
            _walk(student[i], teacher[i], class_mean, part, None if statistics is None else statistics[rows])
            for i, rows, part in _pieces(student, call)
        ]
        return torch.stack(pieces)
    distances = KERNEL_BACKENDS[call.backend].trilateral(
        as_rows(student, call.vocab),
        as_rows(teacher, call.vocab),
        None if class_mean is None else as_rows(class_mean, call.vocab),
        statistics,
        WIRE.addressable(call),
    )
    return reshaped(distances, (*student.shape[:-1], columns))


def _walk_back(
    student: Tensor,
    teacher: Tensor,
    class_mean: Tensor | None,
    call: Trilateral,
    statistics: Tensor,
    distances: Tensor,
    upstream: Tensor,
    gradient: Tensor,
) -> None:
    if uneven(student) or uneven(teacher):
        for i, rows, part in _pieces(student, call):
            edges = (distances[i], upstream[i], gradient[i])
            _walk_back(student[i], teacher[i], class_mean, part, statistics[rows], *edges)
        return
    KERNEL_BACKENDS[call.backend].trilateral_backward(
        as_rows(student, call.vocab),
        as_rows(teacher, call.vocab),
        None if class_mean is None else as_rows(class_mean, call.vocab),
        vector(statistics),
        vector(distances.reshape(-1, distances.shape[-1])),
        vector(upstream.reshape(-1, upstream.shape[-1])),
        written_rows(gradient, call.vocab),
        WIRE.addressable(call),
    )


def _pieces(student: Tensor, call: Trilateral) -> list[tuple[int, slice, Trilateral]]:
    """For each student[i]: i, its rows among all, its part of the call."""
    rows = math.prod(student.shape[1:-1])
    slices = [slice(i * rows, (i + 1) * rows) for i in range(student.shape[0])]
    return [(i, each, WIRE.piece(call, each)) for i, each in enumerate(slices)]


def _empty_statistics(student: Tensor, teacher: Tensor) -> Tensor:
    dtype = accumulation_dtype(student, teacher)
    return student.new_empty((math.prod(student.shape[:-1]), STATISTICS), dtype=dtype)


class _Trilateral(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, rest: tuple[Tensor, Tensor | None, Trilateral]) -> Tensor:
        teacher, class_mean, call = rest
        statistics = _empty_statistics(student, teacher)
        distances = _walk(student, teacher, class_mean, call, statistics)
        ctx.call = WIRE.without_tensors(call)
        inputs = map(watched, (teacher, class_mean, *call[: WIRE.tensors]))
        kept = (student, statistics, distances.clone(), *inputs)  # whoever gets them may modify them
        ctx.form = tuple(map(form, kept))
        ctx.save_for_backward(*kept)
        return distances

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        saved = ctx.saved_tensors
        return first_order(saved[0], _made_gradient, ctx, upstream, saved), None


def _made_gradient(ctx: Any, upstream: Tensor, saved: tuple[Tensor | None, ...]) -> Tensor:
    eager = by_address(upstream, *saved)
    student, statistics, distances, teacher, class_mean, *tensors = map(restored, saved, ctx.form) if eager else saved
    sides, rows = (student, teacher, class_mean), (statistics, distances, upstream)
    call = WIRE.with_tensors(ctx.call, tensors)
    if not eager:
        return torch.ops.kdkernels.trilateral_backward.default(*sides, *WIRE.pack(call), *rows)
    gradient = empty_gradient(student)
    _walk_back(*sides, call, *rows, gradient)
    return gradient


def _operator(student: Tensor, teacher: Tensor, class_mean: Tensor | None, *packed: Any) -> tuple[Tensor, Tensor]:
    call = WIRE.unpack(packed)
    operands.trilateral(student, teacher, class_mean, call)
    operands.runs(call.backend, student, teacher)
    statistics = _empty_statistics(student, teacher)
    return _walk(student, teacher, class_mean, call, statistics), statistics


def _operator_fake(student: Tensor, teacher: Tensor, class_mean: Tensor | None, *packed: Any) -> tuple[Tensor, Tensor]:
    operands.trilateral(student, teacher, class_mean, WIRE.unread(packed))
    statistics = _empty_statistics(student, teacher)
    return statistics.new_empty((*student.shape[:-1], 3 if class_mean is None else 5)), statistics


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    tensors = WIRE.tensors + 3
    ctx.rest = inputs[tensors:]
    ctx.save_for_backward(inputs[0], *map(watched, inputs[1:tensors]), *output)


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    nothing = (None,) * (WIRE.arguments + 2)
    if upstream is None:
        return None, *nothing
    student, *tensors, distances, statistics = ctx.saved_tensors
    arguments = (student, *tensors, *ctx.rest, statistics, distances, upstream)
    return first_order(student, torch.ops.kdkernels.trilateral_backward.default, *arguments), *nothing


def _backward_operator(student: Tensor, teacher: Tensor, class_mean: Tensor | None, *arguments: Any) -> Tensor:
    *packed, statistics, distances, upstream = arguments
    call = WIRE.unpack(tuple(packed))
    operands.trilateral_backward(student, teacher, class_mean, call, statistics, distances, upstream)
    operands.runs(call.backend, student, teacher)
    gradient = empty_gradient(student)
    _walk_back(student, teacher, class_mean, call, statistics, distances, upstream, gradient)
    return gradient


def _backward_fake(student: Tensor, teacher: Tensor, class_mean: Tensor | None, *arguments: Any) -> Tensor:
    *packed, statistics, distances, upstream = arguments
    call = WIRE.unread(tuple(packed))
    operands.trilateral_backward(student, teacher, class_mean, call, statistics, distances, upstream)
    return empty_gradient(student)


_ARGUMENTS = f"(Tensor student, Tensor teacher, Tensor? class_mean, {WIRE.schema}"

register(
    f"trilateral{_ARGUMENTS}) -> (Tensor, Tensor)",
    _operator,
    fake=_operator_fake,
    backward=_backward,
    setup_context=_setup,
)
register(
    f"trilateral_backward{_ARGUMENTS}, Tensor statistics, Tensor distances, Tensor upstream) -> Tensor",
    _backward_operator,
    fake=_backward_fake,
)
