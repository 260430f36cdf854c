"""The divergence operator: both rows in, row values (or their sum) and the student's gradient out of one walk.

It exists once as an implementation, `walk`, and has two doors. In eager mode a bare autograd.Function calls it (a
registered operator costs several times as much per call, more than a small loss itself); whatever is no plain tensor,
or is being traced, takes the registered operators of divergence_operator.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, traced
from ..backends.calls import Divergence
from ..rows import as_rows, overwritable, reshaped, uneven, vector, written_rows
from .saved import form, restored
from .shared import by_address, empty_gradient, first_order, graph_is_kept, watched, watched_in_graph
from .wire import Wire

WIRE = Wire(Divergence)
_SHARED_OUT, _AT_ONCE = 32768, 1024


def divergence(student: Tensor, teacher: Tensor, call: Divergence, inplace: bool = False) -> Tensor:
    """Row values, or their sum where `call.reduce` says so."""
    if traced(student, teacher, *call[: WIRE.tensors]):
        if deferred(student):
            teacher, *tensors = watched_in_graph(teacher, *call[: WIRE.tensors])
            call = WIRE.with_tensors(call, tensors)
        return torch.ops.kdkernels.divergence.default(student, teacher, *WIRE.pack(call))
    if not (student.requires_grad and torch.is_grad_enabled()):
        return walk(student, teacher, call, None)
    values, _ = _Divergence.apply(student, (teacher, call), inplace)
    if inplace and not deferred(student):
        _Overwritten.apply(student)
    return values


def values_and_gradient(student: Tensor, teacher: Tensor, call: Divergence) -> tuple[Tensor, Tensor]:
    """Row values, or their sum, and the derivative of the sum, which takes the student's memory where it can.

    For a backward pass that is written by hand: autograd sees nothing of it.
    """
    if traced(student, teacher, *call[: WIRE.tensors]):
        return torch.ops.kdkernels.divergence_gradient.default(student, teacher, *WIRE.pack(call), None)
    return walk(student, teacher, call, student), student


def walk(student: Tensor, teacher: Tensor, call: Divergence, gradient: Tensor | None) -> Tensor:
    """The values, and the gradient into `gradient`. All that kernels get by address passes here."""
    if uneven(student) or uneven(teacher):
        values = _piecewise(student, teacher, call, gradient)
    else:
        values = KERNEL_BACKENDS[call.backend].divergence(
            as_rows(student, call.vocab),
            as_rows(teacher, call.vocab),
            None if gradient is None else written_rows(gradient, call.vocab),
            WIRE.addressable(call),
        )
    return total(values) if call.reduce else reshaped(values, student.shape[:-1])


def total(values: Tensor) -> Tensor:
    """The sum of (rows,) values, to the same bits for any number of threads: PyTorch's own shares out more than 32768
    numbers among them. (On a GPU it gives all of them to one block, which takes 16 us for 65536.)"""
    if traced(values):  # a graph is for any number of rows, and asks for none
        return values.sum()
    while len(values) > _SHARED_OUT:
        whole = len(values) // _AT_ONCE * _AT_ONCE
        values = torch.cat([values[:whole].view(-1, _AT_ONCE).sum(1), values[whole:].sum().unsqueeze(0)])
    return values.sum()


def _piecewise(student: Tensor, teacher: Tensor, call: Divergence, gradient: Tensor | None) -> Tensor:
    """The row values of logits such as ``logits[:, :-1]``, whose rows no single stride describes, without a copy."""
    rows, each_row = math.prod(student.shape[1:-1]), call._replace(reduce=False)
    values = []
    for index in range(student.shape[0]):
        part = WIRE.piece(each_row, slice(index * rows, (index + 1) * rows))
        part_gradient = None if gradient is None else gradient[index]
        values.append(walk(student[index], teacher[index], part, part_gradient).reshape(-1))
    return torch.cat(values)


def deferred(student: Tensor) -> bool:
    """Whether backward computes the gradient: float16 has no room for one that was divided by the batch before a loss
    scale multiplies it, so there the upstream gradient has to enter before the rounding."""
    return student.dtype == torch.float16


class _Divergence(Function):
    """(values, gradient) in eager mode; the second output is backward's to hand on, and nobody else's."""

    # What needs no gradient in one argument, and no setup_context: autograd would inspect each of them at every call.
    @staticmethod
    def forward(ctx: Any, student: Tensor, rest: tuple[Tensor, Divergence], inplace: bool) -> tuple[Tensor, Tensor]:
        teacher, call = rest
        ctx.inplace, ctx.backend, ctx.deferred = inplace, call.backend, deferred(student)
        ctx.set_materialize_grads(False)
        if ctx.deferred:
            gradient = student.new_empty(0)
            values = walk(student, teacher, call, None)
            ctx.call = WIRE.without_tensors(call)
            inputs = (student, watched(teacher), *map(watched, call[: WIRE.tensors]))
            ctx.form = tuple(map(form, inputs))
            ctx.save_for_backward(*inputs)
            return values, gradient
        # `.data` and not `.detach()`: _Overwritten is about to move the version that an alias would share.
        gradient = student.data if inplace else empty_gradient(student)
        values = walk(student, teacher, call, gradient)
        ctx.form = form(gradient)
        ctx.save_for_backward(gradient)
        if inplace:
            ctx.logits = student.detach()
            ctx.version = ctx.logits._version + 1  # one for _Overwritten
        return values, gradient

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
        if upstream is None:
            return None, None, None
        saved = ctx.saved_tensors  # first: over a graph that was freed this raises autograd's own message
        make = _recomputed if ctx.deferred else _scaled
        if torch.is_grad_enabled():
            return first_order(saved[0], make, ctx, upstream, *saved), None, None
        return make(ctx, upstream, *saved), None, None


class _Overwritten(Function):
    """Tells autograd that these logits, and whatever shares their memory, no longer hold logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor) -> Tensor:
        ctx.mark_dirty(student)
        return student

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> None:
        raise RuntimeError("kdkernels: logits that inplace=True had overwritten by their gradient were used again")


def _scaled(ctx: Any, upstream: Tensor, saved: Tensor) -> Tensor:
    """The saved gradient times the upstream one. A checkpoint hands out what was saved only once."""
    if not by_address(upstream, saved):
        return times(saved, upstream)
    if ctx.inplace:
        if ctx.logits._version != ctx.version:
            raise RuntimeError("kdkernels: the buffer that inplace=True gave to the gradient was modified")
        ctx.logits = ctx.logits if graph_is_kept() else None
    saved = overwritable(restored(saved, ctx.form))
    # Whoever keeps the graph may walk it again and may write into what it got: the saved gradient stays as it is.
    gradient = saved.clone() if graph_is_kept() else saved.detach()
    rows = gradient if gradient.dim() == 2 else gradient.view(-1, gradient.shape[-1])
    factor = upstream if upstream.dim() == 0 else upstream.reshape(-1)
    KERNEL_BACKENDS[ctx.backend].scale_rows(rows, vector(factor))
    return gradient


def times(gradient: Tensor, upstream: Tensor) -> Tensor:
    """The same in plain PyTorch, so that a compiler fuses the product with whatever comes next."""
    return (gradient * upstream.unsqueeze(-1)).to(gradient.dtype)


def _recomputed(ctx: Any, upstream: Tensor, *saved: Tensor | None) -> Tensor:
    eager = by_address(upstream, *saved)
    student, teacher, *tensors = map(restored, saved, ctx.form) if eager else saved
    call = WIRE.with_tensors(ctx.call, tensors)
    if not eager:
        arguments = (student, teacher, *WIRE.pack(call), upstream)
        return torch.ops.kdkernels.divergence_gradient.default(*arguments)[1]
    overwrite = ctx.inplace and not graph_is_kept()
    student = overwritable(student) if overwrite else student
    gradient = student.detach() if overwrite else empty_gradient(student)
    walk(student, teacher, upstream_first(call, student, upstream), gradient)
    if overwrite:
        torch.autograd.graph.increment_version(student)  # whoever else saved these logits must not read them
    return gradient


def upstream_first(call: Divergence, student: Tensor, upstream: Tensor) -> Divergence:
    """The call with the upstream gradient multiplied into its row weights."""
    factor = upstream.reshape(-1).expand(math.prod(student.shape[:-1]))
    soft, hard = (factor if weight is None else weight * factor for weight in (call.soft_weight, call.hard_weight))
    return call._replace(soft_weight=soft, hard_weight=hard)
