"""The softmax operators: probabilities or their logarithms at a temperature, and their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS, traced
from ..rows import as_rows
from .shared import empty_gradient, in_tensor, once, register


def softmax(logits: Tensor, temperature: float, log: bool, backend: str) -> Tensor:
    """softmax or log_softmax, differentiable once."""
    if traced(logits):
        return torch.ops.kdkernels.softmax.default(logits, in_tensor(temperature), log, backend)
    if logits.requires_grad and torch.is_grad_enabled():
        return _Softmax.apply(logits, temperature, log, backend)
    return _softmax(logits, temperature, log, backend)


def _softmax(logits: Tensor, temperature: float, log: bool, backend: str) -> Tensor:
    output = empty_gradient(logits)
    columns = logits.shape[-1]
    rows = output.view(-1, columns)
    KERNEL_BACKENDS[backend].softmax(as_rows(logits, columns), rows, temperature=temperature, log=log)
    return output


def _softmax_backward(upstream: Tensor, output: Tensor, temperature: float, log: bool, backend: str) -> Tensor:
    gradient = empty_gradient(output)
    columns = output.shape[-1]
    rows = (as_rows(upstream, columns), as_rows(output, columns), gradient.view(-1, columns))
    KERNEL_BACKENDS[backend].softmax_backward(*rows, temperature=temperature, log=log)
    return gradient


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> Tensor:
        output = _softmax(logits, *arguments)
        ctx.arguments = arguments
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        (output,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = _softmax_backward(upstream, output, *ctx.arguments)
        return once(gradient, output), None, None, None


def _operator_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, scalars, *ctx.rest = inputs
    ctx.save_for_backward(output, scalars)


def _operator_backward(ctx: Any, upstream: Tensor) -> tuple:
    output, scalars = ctx.saved_tensors
    gradient = torch.ops.kdkernels.softmax_backward.default(upstream.detach(), output.detach(), scalars, *ctx.rest)
    return once(gradient, output), None, None, None


register(
    "softmax(Tensor logits, Tensor temperature, bool log, str backend) -> Tensor",
    lambda logits, temperature, *rest: _softmax(logits, temperature.item(), *rest),
    fake=lambda logits, *_: empty_gradient(logits),
    backward=_operator_backward,
    setup_context=_operator_setup,
)
register(
    "softmax_backward(Tensor upstream, Tensor output, Tensor temperature, bool log, str backend) -> Tensor",
    lambda upstream, output, temperature, *rest: _softmax_backward(upstream, output, temperature.item(), *rest),
    fake=lambda upstream, output, *_: empty_gradient(output),
)
