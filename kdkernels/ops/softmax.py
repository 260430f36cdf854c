"""The softmax operators: probabilities or their logarithms at a temperature, and their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, traced
from ..backends.calls import Softmax
from ..checks import operands
from ..rows import as_rows
from .saved import form, restored
from .shared import by_address, empty_gradient, first_order, register
from .wire import Wire

WIRE = Wire(Softmax)


def softmax(logits: Tensor, call: Softmax) -> Tensor:
    """softmax or log_softmax, differentiable once."""
    if traced(logits):
        return torch.ops.kdkernels.softmax.default(logits, *WIRE.pack(call))
    if logits.requires_grad and torch.is_grad_enabled():
        return _Softmax.apply(logits, call)
    return _walk(logits, call)


def _walk(logits: Tensor, call: Softmax) -> Tensor:
    output = empty_gradient(logits)
    KERNEL_BACKENDS[call.backend].softmax(as_rows(logits, None), output.view(-1, output.shape[-1]), call)
    return output


def _walk_back(upstream: Tensor, output: Tensor, call: Softmax) -> Tensor:
    gradient = empty_gradient(output)
    rows = (as_rows(upstream, None), as_rows(output, None), gradient.view(-1, gradient.shape[-1]))
    KERNEL_BACKENDS[call.backend].softmax_backward(*rows, call)
    return gradient


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: Softmax) -> Tensor:
        output = _walk(logits, call)
        ctx.call = call
        ctx.form = form(output)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        (output,) = ctx.saved_tensors
        return first_order(output, _made_gradient, upstream, output, ctx), None


def _made_gradient(upstream: Tensor, output: Tensor, ctx: Any) -> Tensor:
    if by_address(upstream, output):
        return _walk_back(upstream, restored(output, ctx.form), ctx.call)
    return torch.ops.kdkernels.softmax_backward.default(upstream, output, *WIRE.pack(ctx.call))


def _operator(logits: Tensor, *packed: Any) -> Tensor:
    call = WIRE.unpack(packed)
    operands.softmax(logits)
    operands.runs(call.backend, logits)
    return _walk(logits, call)


def _operator_fake(logits: Tensor, *_: Any) -> Tensor:
    operands.softmax(logits)
    return empty_gradient(logits)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.rest = inputs[1:-1]
    ctx.save_for_backward(output, inputs[-1])


def _backward(ctx: Any, upstream: Tensor) -> tuple:
    output, numbers = ctx.saved_tensors
    arguments = (upstream, output, *ctx.rest, numbers)
    gradient = first_order(output, torch.ops.kdkernels.softmax_backward.default, *arguments)
    return gradient, *(None,) * WIRE.arguments


def _backward_operator(upstream: Tensor, output: Tensor, *packed: Any) -> Tensor:
    call = WIRE.unpack(packed)
    operands.softmax_backward(upstream, output)
    operands.runs(call.backend, output)
    return _walk_back(upstream, output, call)


def _backward_fake(upstream: Tensor, output: Tensor, *_: Any) -> Tensor:
    operands.softmax_backward(upstream, output)
    return empty_gradient(output)


register(
    f"softmax(Tensor logits, {WIRE.schema}) -> Tensor",
    _operator,
    fake=_operator_fake,
    backward=_backward,
    setup_context=_setup,
)
register(
    f"softmax_backward(Tensor upstream, Tensor output, {WIRE.schema}) -> Tensor",
    _backward_operator,
    fake=_backward_fake,
)
