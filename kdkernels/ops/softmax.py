"""The softmax operators: probabilities or their logarithms at a temperature, and their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import KERNEL_BACKENDS
from .shared import as_rows, empty_gradient, once, register, traced


def softmax(logits: Tensor, temperature: float, log: bool, backend: str) -> Tensor:
    """softmax or log_softmax, differentiable once."""
    if traced(logits):
        return torch.ops.kdkernels.softmax.default(logits, temperature, log, backend)
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
        _save(ctx, (logits, *arguments), output)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        (output,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = _softmax_backward(upstream, output, *ctx.arguments)
        return once(gradient, output), None, None, None


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.arguments = inputs[1:]
    ctx.save_for_backward(output)


def _operator_backward(ctx: Any, upstream: Tensor) -> tuple:
    (output,) = ctx.saved_tensors
    gradient = torch.ops.kdkernels.softmax_backward.default(upstream.detach(), output.detach(), *ctx.arguments)
    return once(gradient, output), None, None, None


register(
    "softmax(Tensor logits, float temperature, bool log, str backend) -> Tensor",
    _softmax,
    fake=lambda logits, *_: empty_gradient(logits),
    backward=_operator_backward,
    setup_context=_save,
)
register(
    "softmax_backward(Tensor upstream, Tensor output, float temperature, bool log, str backend) -> Tensor",
    _softmax_backward,
    fake=lambda upstream, output, *_: empty_gradient(output),
)
