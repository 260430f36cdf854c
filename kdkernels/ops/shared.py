"""What the operators share: rows as two dimensions, who is tracing, what autograd tells, and the missing derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_LIBRARY = torch.library.Library("kdkernels", "DEF")
_DEVICES = ("CPU", "CUDA", "XPU")
_WORTH_A_CALL = 1 << 15  # elements: fewer are copied in less time than a call takes to start
_PLAIN = (Tensor, torch.nn.Parameter)


def traced(*tensors: Tensor) -> bool:
    """Whether something other than plain eager PyTorch is looking: a compiler, a tracer, a tensor subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state():
        return True
    return any(type(tensor) not in _PLAIN for tensor in tensors)


def as_rows(tensor: Tensor, vocab: int) -> Tensor:
    """(..., columns) as (rows, vocab) with unit last stride: a view wherever one exists."""
    columns = tensor.shape[-1]
    if tensor.stride(-1) != 1 and columns > 1:
        tensor = tensor.contiguous()
    if tensor.dim() != 2:
        tensor = tensor.reshape(-1, columns) if tensor.numel() else tensor.new_empty(0, columns)
    return tensor if vocab == columns else tensor[:, :vocab]


def uneven(tensor: Tensor) -> bool:
    """Whether rows lie in memory in several evenly spaced runs, each long enough to be worth a call of its own."""
    if tensor.dim() < 3 or tensor.is_contiguous() or tensor.stride(-1) != 1:
        return False
    outer = [(size, stride) for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size != 1]
    even = all(here[1] == below[0] * below[1] for here, below in zip(outer, outer[1:], strict=False))
    return not even and tensor[0].numel() >= _WORTH_A_CALL


def written_rows(gradient: Tensor, vocab: int) -> Tensor:
    """A gradient to fill, as (rows, vocab); its columns beyond the vocabulary become zero here."""
    rows = gradient if gradient.dim() == 2 else gradient.view(-1, gradient.shape[-1])
    if vocab == rows.shape[1]:
        return rows
    rows[:, vocab:].zero_()
    return rows[:, :vocab]


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def empty_gradient(student: Tensor) -> Tensor:
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def in_tensor(*numbers: float) -> Tensor:
    """Numbers as a float64 tensor on the CPU, for an operator under a tracer.

    As float arguments they would be constants of the graph, and every step of a temperature schedule, every batch size
    a recompilation. A product with a tensor is what the compiler can keep symbolic; the operator reads them on the
    host, where they are, so that no device is waited for.
    """
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([one * number for number in numbers])


def graph_is_kept() -> bool:
    """Whether the backward pass that is running may be followed by another over the same graph (True if unknown)."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


class _Once(Function):
    """The identity on a gradient, in the graph that create_graph=True builds: its own derivative raises."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        raise RuntimeError(
            "kdkernels: the second derivative of a fused loss is not implemented; use backend='reference', which is "
            "plain differentiable PyTorch, where a double backward is wanted"
        )


def once(gradient: Tensor, anchor: Tensor) -> Tensor:
    """`anchor` ties the gradient to the student in the graph: a second derivative finds its way to the error."""
    return _Once.apply(gradient, anchor) if torch.is_grad_enabled() else gradient


def register(
    schema: str,
    implementation: Callable,
    *,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Define torch.ops.kdkernels.<name>: one implementation for every device, what it looks like, how it derives."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    for device in _DEVICES:
        _LIBRARY.impl(name, implementation, device)
    torch.library.register_fake(f"kdkernels::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"kdkernels::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
