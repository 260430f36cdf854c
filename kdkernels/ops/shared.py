"""What the operators share: who is tracing, what autograd tells, the missing derivative, and registration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends import traced, transformed
from ..backends.fallback import outside_graphs
from ..checks.memory import companion

# What is_grads_batched=True makes of upstream gradients.
_is_batch = torch._C._functorch.is_legacy_batchedtensor
_DEVICES = ("CPU", "CUDA", "XPU")
# What is registered lies with torch and not in this module. An operator lives as long as the process, and traced and
# compiled graphs point at it: when this package is imported again (after its modules were purged, an import that was
# interrupted, a reload), the operator stays and calls what was registered last.
_OPERATORS: dict[str, SimpleNamespace] = vars(torch.library).setdefault("_kdkernels_operators", {})


def by_address(upstream: Tensor, *saved: Tensor | None) -> bool:
    """Whether a backward pass may hand these to a kernel. If not, a tracer, a subclass or a batch of upstream gradients
    is behind one of them, and the registered operators know what to do."""
    if _is_batch(upstream) or transformed() or traced(upstream, *saved):
        companion("grad_output", upstream, saved[0])
        return False
    return True


def watched(tensor: Tensor | None) -> Tensor | None:
    """What backward will read, in a form that autograd watches over: of an inference tensor a copy."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def watched_in_graph(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same for what torch.compile is tracing, which would save its input in place of a clone: by an operator."""
    if not (torch.compiler.is_dynamo_compiling() and _traces_inference_tensors()):
        return tensors
    return tuple(None if each is None else torch.ops.kdkernels.copy.default(each) for each in tensors)


@outside_graphs
def _traces_inference_tensors() -> bool:
    """Whether one of the tensors that torch.compile has met in this trace is an inference tensor.

    Its fake tensors do not tell, and the guards on its inputs see the difference.
    """
    mode = torch._guards.TracingContext.get().fake_mode
    try:
        seen = mode.fake_tensor_converter.meta_converter.describer.lookup_tensor
    except AttributeError:  # a version of torch that keeps them elsewhere: a copy is right for every tensor
        return True
    return any(real.is_inference() for real in list(seen))


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


def first_order(anchor: Tensor, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """make(*arguments), a gradient, outside of the graph that create_graph=True builds.

    There `anchor` ties it to the student, so that a second derivative finds its way to the error.
    """
    if not torch.is_grad_enabled():
        return make(*arguments)
    with torch.no_grad():
        gradient = make(*arguments)
    return _Once.apply(gradient, anchor)


def register(
    schema: str,
    implementation: Callable,
    *,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    differentiable: Callable | None = None,
) -> None:
    """torch.ops.kdkernels.<name>: one implementation for every device, what it looks like, how it derives."""
    name = schema[: schema.index("(")]
    given = {"implementation": implementation, "fake": fake, "backward": backward, "setup_context": setup_context}
    given["differentiable"] = differentiable
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
    operator = getattr(torch.ops.kdkernels, name).default
    if "differentiable" in calls:
        library.impl(name, _above_autograd(operator, calls["differentiable"]), "Autograd", with_keyset=True)
    torch.library.register_vmap(operator, functools.partial(_one_by_one, operator), lib=library)


def _above_autograd(operator: Any, differentiable: Callable) -> Callable:
    """``differentiable(below, *arguments)`` runs above autograd; below(*arguments) is the operator without it."""

    def kernel(keys: Any, *arguments: Any) -> Any:
        def below(*given: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keys & torch._C._after_autograd_keyset, *given)

        return differentiable(below, *arguments)

    return kernel


def _one_by_one(operator: Any, info: Any, dims: tuple, *arguments: Any) -> tuple:
    """vmap over an operator, which batched gradients are made of: one call for each of the batch."""
    results = []
    for index in range(info.batch_size):
        batch = zip(arguments, dims, strict=True)
        results.append(operator(*(each if dim is None else each.select(dim, index) for each, dim in batch)))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


register("copy(Tensor tensor) -> Tensor", torch.clone, fake=torch.empty_like)
