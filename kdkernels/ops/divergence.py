"""The divergence operator: both rows in, row values (or their sum) and the student's gradient out of one walk.

It exists once as an implementation and has two doors. In eager mode a bare autograd.Function calls the backend (a
registered operator costs several times as much per call, more than a small loss itself); under a tracer the registered
operator is used: opaque, with a fake implementation, and a backward in plain PyTorch that a compiler can fuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS
from ..backends.reference import accumulation_dtype
from .shared import as_rows, contiguous, empty_gradient, graph_is_kept, once, register, traced, written_rows

_TENSORS = 6  # the arguments of the operator that are tensors: they come first


def divergence(student: Tensor, teacher: Tensor, *arguments: Any) -> Tensor:
    """Row values or their sum; arguments as the registered operator's, with `inplace` in place of needs_gradient."""
    *arguments, inplace, backend = arguments
    needs_gradient = student.requires_grad and torch.is_grad_enabled()
    if traced(student, teacher):
        # Nothing is made for a deferred gradient: the operator's backward computes it.
        needs_gradient = needs_gradient and not _deferred(student)
        values = torch.ops.kdkernels.divergence.default(student, teacher, *arguments, needs_gradient, backend)[0]
    elif needs_gradient:
        values = _Divergence.apply(student, (teacher, *arguments), inplace, backend)[0]
        if inplace and not _deferred(student):
            _Overwritten.apply(student)
    else:
        values = _divergence(student, teacher, *arguments, None, backend)
    return values


def _divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    soft_weight: Tensor | None,
    hard_weight: Tensor | None,
    table: Tensor | None,
    loss: str,
    parameter: float,
    temperature: float,
    soft_scale: float,
    hard_scale: float,
    vocab: int,
    reduce: bool,
    gradient: Tensor | None,
    backend: str,
) -> Tensor:
    values = KERNEL_BACKENDS[backend].divergence(
        as_rows(student, vocab),
        as_rows(teacher, vocab),
        contiguous(labels),
        contiguous(soft_weight),
        contiguous(hard_weight),
        None if gradient is None else written_rows(gradient, vocab),
        loss=loss,
        parameter=parameter,
        table=table,
        temperature=temperature,
        soft_scale=soft_scale,
        hard_scale=hard_scale,
    )
    return values.sum() if reduce else values.view(student.shape[:-1])


def _deferred(student: Tensor) -> bool:
    """Whether backward computes the gradient: float16 has no room for one that was divided by the batch before a loss
    scale multiplies it, so there the upstream gradient has to enter before the rounding."""
    return student.dtype == torch.float16


class _Divergence(Function):
    """(values, gradient) in eager mode; the second output is backward's to hand on, and nobody else's."""

    # One packed argument and no setup_context: autograd would inspect each of them at every call.
    @staticmethod
    def forward(ctx: Any, student: Tensor, arguments: tuple, inplace: bool, backend: str) -> tuple[Tensor, Tensor]:
        ctx.inplace = inplace
        if _deferred(student):
            gradient = student.new_empty(0)
            values = _divergence(student, *arguments, None, backend)
        else:
            # `.data` and not `.detach()`: _Overwritten is about to move the version that an alias would share.
            gradient = student.data if inplace else empty_gradient(student)
            values = _divergence(student, *arguments, gradient, backend)
            if inplace:
                ctx.logits = student.detach()
                ctx.version = ctx.logits._version + 1  # one for _Overwritten
        _save(ctx, (student, *arguments), backend, gradient)
        return values, gradient

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
        if upstream is None:
            return None, None, None, None
        if ctx.inplace and not ctx.deferred and ctx.logits._version != ctx.version:
            raise RuntimeError(
                "kdkernels: the buffer that inplace=True gave to the gradient was modified before backward"
            )
        if torch.is_grad_enabled():  # create_graph=True
            with torch.no_grad():
                gradient = _eager_gradient(ctx, upstream)
            return once(gradient, ctx.saved_tensors[0]), None, None, None
        return _eager_gradient(ctx, upstream), None, None, None


class _Overwritten(Function):
    """Tells autograd that these logits, and whatever shares their memory, no longer hold logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor) -> Tensor:
        ctx.mark_dirty(student)
        return student

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> None:
        raise RuntimeError("kdkernels: logits that inplace=True had overwritten by their gradient were used again")


def _save(ctx: Any, arguments: tuple, backend: str, gradient: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.backend = backend
    ctx.deferred = _deferred(arguments[0])
    if ctx.deferred:
        ctx.save_for_backward(*arguments[:_TENSORS])
        ctx.arguments = arguments[_TENSORS:]
    else:
        ctx.save_for_backward(gradient)


def _eager_gradient(ctx: Any, upstream: Tensor) -> Tensor:
    kept = graph_is_kept()
    if ctx.deferred:
        student, *others = _upstream_first(ctx.saved_tensors, upstream)
        gradient = student.detach() if ctx.inplace and not kept else empty_gradient(student)
        _divergence(student, *others, *ctx.arguments, gradient, ctx.backend)
        return gradient
    gradient = ctx.saved_tensors[0].detach()
    # Whoever keeps the graph may walk it again and may write into what it got: the saved gradient stays as it is.
    gradient = gradient.clone() if kept else gradient
    rows = gradient if gradient.dim() == 2 else gradient.view(-1, gradient.shape[-1])
    factor = upstream.reshape(-1).contiguous() if upstream.dim() else upstream
    KERNEL_BACKENDS[ctx.backend].scale_rows(rows, factor)
    return gradient


def _upstream_first(saved: tuple, upstream: Tensor) -> tuple:
    """The saved tensors of `divergence` with the upstream gradient multiplied into the row weights."""
    student, teacher, labels, soft_weight, hard_weight, table = saved
    factor = upstream.reshape(-1).expand(student.shape[:-1].numel())
    soft, hard = (factor if weight is None else weight * factor for weight in (soft_weight, hard_weight))
    return student, teacher, labels, soft, hard, table


def _operator(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *arguments, needs_gradient, backend = arguments
    gradient = empty_gradient(student) if needs_gradient else None
    values = _divergence(student, *arguments, gradient, backend)
    return values, student.new_empty(0) if gradient is None else gradient


def _operator_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, reduce, needs_gradient, _ = arguments
    values = student.new_empty(() if reduce else student.shape[:-1], dtype=accumulation_dtype(student, teacher))
    return values, empty_gradient(student) if needs_gradient else student.new_empty(0)


def _operator_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *arguments, _, backend = inputs
    ctx.inputs = len(inputs)
    _save(ctx, tuple(arguments), backend, output[1])


def _operator_backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple:
    nothing = (None,) * (ctx.inputs - 1)
    if upstream is None:
        return None, *nothing
    if ctx.deferred:
        student, *others = _upstream_first(ctx.saved_tensors, upstream.detach())
        operator = torch.ops.kdkernels.divergence.default
        gradient = operator(student.detach(), *others, *ctx.arguments, True, ctx.backend)[1]
    else:
        # Plain PyTorch, so that a compiler fuses the product with whatever comes next.
        saved = ctx.saved_tensors[0]
        gradient = (saved.detach() * upstream.detach().unsqueeze(-1)).to(saved.dtype)
    return once(gradient, ctx.saved_tensors[0]), *nothing


register(
    "divergence(Tensor student, Tensor teacher, Tensor? labels, Tensor? soft_weight, Tensor? hard_weight, "
    "Tensor? table, str loss, float parameter, float temperature, float soft_scale, float hard_scale, SymInt vocab, "
    "bool reduce, bool needs_gradient, str backend) -> (Tensor, Tensor)",
    _operator,
    fake=_operator_fake,
    backward=_operator_backward,
    setup_context=_operator_setup,
)
