"""What the operators share: who is tracing, what autograd tells, the missing derivative, and registration."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_DEVICES = ("CPU", "CUDA", "XPU")
# What is registered lies with torch and not in this module. An operator lives as long as the process, and traced and
# compiled graphs point at it: when this package is imported again (after its modules were purged, an import that was
# interrupted, a reload), the operator stays and calls what was registered last.
_OPERATORS: dict[str, SimpleNamespace] = vars(torch.library).setdefault("_kdkernels_operators", {})


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def followed(tensor: Tensor | None) -> bool:
    """Whether autograd can watch over a tensor that backward will read: not over an inference tensor."""
    return tensor is not None and not tensor.is_inference()


def empty_gradient(student: Tensor) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)  # a third of torch.empty(shape, ...)


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
    """torch.ops.kdkernels.<name>: one implementation for every device, what it looks like, how it derives."""
    name = schema[: schema.index("(")]
    given = {"implementation": implementation, "fake": fake, "backward": backward, "setup_context": setup_context}
    functions = {part: function for part, function in given.items() if function is not None}
    form = (schema, *functions)
    operator = _OPERATORS.get(name)
    if operator is None or operator.form != form:
        if operator is not None:  # another version of this package defined it, or its definition was interrupted
            operator.library._destroy()
        operator = _OPERATORS[name] = SimpleNamespace(library=torch.library.Library("kdkernels", "FRAGMENT"), form=None)
        _define(operator.library, name, *form)
    vars(operator).update(functions, form=form)


def _define(library: torch.library.Library, name: str, schema: str, *parts: str) -> None:
    def latest(part: str) -> Callable:
        return lambda *arguments, **keywords: getattr(_OPERATORS[name], part)(*arguments, **keywords)

    calls = {part: latest(part) for part in parts}
    qualified = f"kdkernels::{name}"
    library.define(schema)
    for device in _DEVICES:
        library.impl(name, calls["implementation"], device)
    torch.library.register_fake(qualified, calls["fake"], lib=library)
    if "backward" in calls:
        setup_context = calls.get("setup_context")
        torch.library.register_autograd(qualified, calls["backward"], setup_context=setup_context, lib=library)
