"""The divergence operator: both rows in, row values (or their sum) and the student's gradient out of one walk.

It exists once as an implementation and has two doors. In eager mode a bare autograd.Function calls the backend (a
registered operator costs several times as much per call, more than a small loss itself); under a tracer the registered
operator is used: opaque, with a fake implementation, and a backward in plain PyTorch that a compiler can fuse.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, traced
from ..backends.reference import accumulation_dtype
from ..rows import as_rows, uneven, written_rows
from .shared import contiguous, empty_gradient, followed, graph_is_kept, in_tensor, once, register


class Scalars(NamedTuple):
    """The numbers of a call; under a tracer one float64 tensor on the CPU (`in_tensor` says why)."""

    parameter: float
    temperature: float
    soft_scale: float
    hard_scale: float


_CALL_TENSORS = 5  # the fields of a Call that come first are tensors


class Call(NamedTuple):
    """One call of the operator: everything but the student, and what differs between the two doors."""

    teacher: Tensor
    labels: Tensor | None
    soft_weight: Tensor | None
    hard_weight: Tensor | None
    table: Tensor | None
    scalars: Scalars
    loss: str
    vocab: int
    reduce: bool


def divergence(student: Tensor, call: Call, inplace: bool, backend: str) -> Tensor:
    """Row values, or their sum where `call.reduce` says so."""
    needs_gradient = student.requires_grad and torch.is_grad_enabled()
    if traced(student, call.teacher):
        # Nothing is made for a deferred gradient: the operator's backward computes it.
        needs_gradient = needs_gradient and not _deferred(student)
        arguments = call._replace(scalars=in_tensor(*call.scalars))
        return torch.ops.kdkernels.divergence.default(student, *arguments, needs_gradient, backend)[0]
    if not needs_gradient:
        return _divergence(student, call, None, backend)
    values, _ = _Divergence.apply(student, call, inplace, backend)
    if inplace and not _deferred(student):
        _Overwritten.apply(student)
    return values


def values_and_gradient(student: Tensor, call: Call, backend: str) -> tuple[Tensor, Tensor]:
    """Row values, or their sum, and the derivative of the sum, which takes the student's memory where it can.

    For a backward pass that is written by hand: autograd sees nothing of it.
    """
    if traced(student, call.teacher):
        arguments = call._replace(scalars=in_tensor(*call.scalars))
        return torch.ops.kdkernels.divergence.default(student, *arguments, True, backend)
    return _divergence(student, call, student, backend), student


def _divergence(student: Tensor, call: Call, gradient: Tensor | None, backend: str) -> Tensor:
    if uneven(student) or uneven(call.teacher):
        values = _piecewise(student, call, gradient, backend)
        return values.sum() if call.reduce else values.view(student.shape[:-1])
    values = KERNEL_BACKENDS[backend].divergence(
        as_rows(student, call.vocab),
        as_rows(call.teacher, call.vocab),
        contiguous(call.labels),
        contiguous(call.soft_weight),
        contiguous(call.hard_weight),
        None if gradient is None else written_rows(gradient, call.vocab),
        loss=call.loss,
        table=call.table,
        **call.scalars._asdict(),
    )
    return values.sum() if call.reduce else values.view(student.shape[:-1])


def _piecewise(student: Tensor, call: Call, gradient: Tensor | None, backend: str) -> Tensor:
    """The row values of logits such as ``logits[:, :-1]``, whose rows no single stride describes, without a copy."""
    rows = math.prod(student.shape[1:-1])
    values = []
    for index in range(student.shape[0]):
        piece = slice(index * rows, (index + 1) * rows)
        labels, soft, hard = (None if each is None else each[piece] for each in call[1:4])
        part = Call(call.teacher[index], labels, soft, hard, call.table, call.scalars, call.loss, call.vocab, False)
        part_gradient = None if gradient is None else gradient[index]
        values.append(_divergence(student[index], part, part_gradient, backend).reshape(-1))
    return torch.cat(values)


def _deferred(student: Tensor) -> bool:
    """Whether backward computes the gradient: float16 has no room for one that was divided by the batch before a loss
    scale multiplies it, so there the upstream gradient has to enter before the rounding."""
    return student.dtype == torch.float16


class _Divergence(Function):
    """(values, gradient) in eager mode; the second output is backward's to hand on, and nobody else's."""

    # One packed argument and no setup_context: autograd would inspect each of them at every call.
    @staticmethod
    def forward(ctx: Any, student: Tensor, call: Call, inplace: bool, backend: str) -> tuple[Tensor, Tensor]:
        ctx.inplace, ctx.backend, ctx.deferred = inplace, backend, _deferred(student)
        ctx.set_materialize_grads(False)
        if ctx.deferred:
            gradient = student.new_empty(0)
            values = _divergence(student, call, None, backend)
            ctx.call = call
            ctx.save_for_backward(student, *(each for each in call[:_CALL_TENSORS] if followed(each)))
            return values, gradient
        # `.data` and not `.detach()`: _Overwritten is about to move the version that an alias would share.
        gradient = student.data if inplace else empty_gradient(student)
        values = _divergence(student, call, gradient, backend)
        ctx.save_for_backward(gradient)
        if inplace:
            ctx.logits = student.detach()
            ctx.version = ctx.logits._version + 1  # one for _Overwritten
        return values, gradient

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
        if upstream is None:
            return None, None, None, None
        saved = ctx.saved_tensors[0]  # first: over a graph that was freed this raises autograd's own message
        if ctx.inplace and not ctx.deferred:
            if ctx.logits._version != ctx.version:
                raise RuntimeError("kdkernels: the buffer that inplace=True gave to the gradient was modified")
            ctx.logits = ctx.logits if graph_is_kept() else None
        if torch.is_grad_enabled():  # create_graph=True
            with torch.no_grad():
                gradient = _eager_gradient(ctx, saved, upstream)
            return once(gradient, saved), None, None, None
        return _eager_gradient(ctx, saved, upstream), None, None, None


class _Overwritten(Function):
    """Tells autograd that these logits, and whatever shares their memory, no longer hold logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor) -> Tensor:
        ctx.mark_dirty(student)
        return student

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> None:
        raise RuntimeError("kdkernels: logits that inplace=True had overwritten by their gradient were used again")


def _eager_gradient(ctx: Any, saved: Tensor, upstream: Tensor) -> Tensor:
    """saved: the student where the gradient is deferred, else the gradient. A checkpoint hands it out only once."""
    kept = graph_is_kept()
    if ctx.deferred:
        overwrite = ctx.inplace and not kept
        gradient = saved.detach() if overwrite else empty_gradient(saved)
        _divergence(saved, _upstream_first(ctx.call, saved, upstream), gradient, ctx.backend)
        if overwrite:
            torch.autograd.graph.increment_version(saved)  # whoever else saved these logits must not read them
        return gradient
    gradient = saved.detach()
    # Whoever keeps the graph may walk it again and may write into what it got: the saved gradient stays as it is.
    gradient = gradient.clone() if kept else gradient
    rows = gradient if gradient.dim() == 2 else gradient.view(-1, gradient.shape[-1])
    factor = upstream.reshape(-1).contiguous() if upstream.dim() else upstream
    KERNEL_BACKENDS[ctx.backend].scale_rows(rows, factor)
    return gradient


def _upstream_first(call: Call, student: Tensor, upstream: Tensor) -> Call:
    """The call with the upstream gradient multiplied into its row weights."""
    factor = upstream.reshape(-1).expand(math.prod(student.shape[:-1]))
    soft, hard = (factor if weight is None else weight * factor for weight in (call.soft_weight, call.hard_weight))
    return call._replace(soft_weight=soft, hard_weight=hard)


def _operator(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *arguments, needs_gradient, backend = arguments
    call = Call(*arguments)
    call = call._replace(scalars=Scalars(*call.scalars.tolist()))
    gradient = empty_gradient(student) if needs_gradient else None
    values = _divergence(student, call, gradient, backend)
    return values, student.new_empty(0) if gradient is None else gradient


def _operator_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, reduce, needs_gradient, _ = arguments
    values = student.new_empty(() if reduce else student.shape[:-1], dtype=accumulation_dtype(student, teacher))
    return values, empty_gradient(student) if needs_gradient else student.new_empty(0)


def _operator_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    student, *arguments, _, backend = inputs
    ctx.inputs, ctx.backend, ctx.deferred = len(inputs), backend, _deferred(student)
    ctx.set_materialize_grads(False)
    if ctx.deferred:
        tensors = _CALL_TENSORS + 1  # the scalars too
        ctx.save_for_backward(student, *arguments[:tensors])
        ctx.rest = arguments[tensors:]
    else:
        ctx.save_for_backward(output[1])


def _operator_backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    nothing = (None,) * (ctx.inputs - 1)
    if upstream is None:
        return None, *nothing
    saved, *tensors = ctx.saved_tensors
    if ctx.deferred:
        call = _upstream_first(Call(*tensors, *ctx.rest), saved, upstream.detach())
        gradient = torch.ops.kdkernels.divergence.default(saved.detach(), *call, True, ctx.backend)[1]
    else:
        # Plain PyTorch, so that a compiler fuses the product with whatever comes next.
        gradient = (saved.detach() * upstream.detach().unsqueeze(-1)).to(saved.dtype)
    return once(gradient, saved), *nothing


register(
    "divergence(Tensor student, Tensor teacher, Tensor? labels, Tensor? soft_weight, Tensor? hard_weight, "
    "Tensor? table, Tensor scalars, str loss, SymInt vocab, bool reduce, bool needs_gradient, str backend) "
    "-> (Tensor, Tensor)",
    _operator,
    fake=_operator_fake,
    backward=_operator_backward,
    setup_context=_operator_setup,
)
