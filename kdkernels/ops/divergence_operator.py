"""The registered divergence: what tracers, compilers, exported graphs and tensor subclasses see.

``divergence`` gives values; when it runs, not when it is traced, it is decided whether a gradient is wanted and comes
along (``divergence_gradient``). So a graph holds neither that nor, where all columns count, the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends.calls import Divergence
from ..backends.reference import accumulation_dtype
from ..checks import operands
from .divergence import WIRE, deferred, times, upstream_first, walk
from .shared import empty_gradient, first_order, register, watched

_ARGUMENTS = f"(Tensor student, Tensor teacher, {WIRE.schema}"


def _values(student: Tensor, teacher: Tensor, *arguments: Any) -> Tensor:
    return walk(student, teacher, _checked(student, teacher, arguments), None)


def _values_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> Tensor:
    call = WIRE.unread(arguments)
    operands.divergence(student, teacher, call)
    dtype = accumulation_dtype(student, teacher)
    return student.new_empty(() if call.reduce else student.shape[:-1], dtype=dtype)


def _gradient(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Values and gradient, both times `upstream` where it is given: it enters before float16 rounds."""
    *packed, upstream = arguments
    call = _checked(student, teacher, packed, upstream)
    if upstream is not None:
        call = upstream_first(call, student, upstream)
    gradient = empty_gradient(student)
    return walk(student, teacher, call, gradient), gradient


def _gradient_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    operands.divergence(student, teacher, WIRE.unread(arguments), arguments[-1])
    return _values_fake(student, teacher, *arguments[:-1]), empty_gradient(student)


def _checked(student: Tensor, teacher: Tensor, packed: Any, upstream: Tensor | None = None) -> Divergence:
    call = WIRE.unpack(packed)
    operands.divergence(student, teacher, call, upstream)
    operands.runs(call.backend, student, teacher)
    return call


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.nothing = (None,) * (len(inputs) - 1)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    if upstream is None:
        return None, *ctx.nothing
    (saved,) = ctx.saved_tensors
    return first_order(saved, times, saved, upstream), *ctx.nothing


class _Recomputed(Function):
    """Values alone, whose backward walks once more."""

    @staticmethod
    def forward(ctx: Any, below: Any, student: Tensor, *arguments: Any) -> Tensor:
        ctx.set_materialize_grads(False)
        values = below(student, *arguments)
        tensors = WIRE.tensors + 1  # the teacher first
        ctx.rest = arguments[tensors:-1]
        ctx.save_for_backward(student, *map(watched, arguments[:tensors]), arguments[-1])
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple:
        nothing = (None,) * (WIRE.arguments + 1)
        if upstream is None:
            return None, None, *nothing
        student, *tensors, numbers = ctx.saved_tensors
        arguments = (student, *tensors, *ctx.rest, numbers, upstream)
        return None, first_order(student, _gradient_alone, *arguments), *nothing


def _gradient_alone(*arguments: Any) -> Tensor:
    return torch.ops.kdkernels.divergence_gradient.default(*arguments)[1]


def _differentiable(below: Any, student: Tensor, *arguments: Any) -> Tensor:
    if not (student.requires_grad and torch.is_grad_enabled()):
        return below(student, *arguments)
    if deferred(student):
        return _Recomputed.apply(below, student, *arguments)
    return torch.ops.kdkernels.divergence_gradient.default(student, *arguments, None)[0]


register(f"divergence{_ARGUMENTS}) -> Tensor", _values, fake=_values_fake, differentiable=_differentiable)
register(
    f"divergence_gradient{_ARGUMENTS}, Tensor? upstream) -> (Tensor, Tensor)",
    _gradient,
    fake=_gradient_fake,
    backward=_backward,
    setup_context=_setup,
)
