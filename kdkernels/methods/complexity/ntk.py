"""The empirical neural tangent kernel of a network."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments
from .evaluation import Evaluated, undisturbed
from .jacobian import Walk, groups, width

_BLOCK = 2048
"""Rows and columns of K that are added to at once: enough for a matrix product, and K's upper half in few of them."""


def empirical_ntk(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    *,
    outputs: str | int = "all",
    chunk: int = 32,
    memory: int = 1 << 30,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Tensor:
    """The empirical neural tangent kernel K = J J^T, J the Jacobian of the model's outputs in its parameters.

    Equivalent to::

        J = torch.func.jacrev(lambda weights: functional_call(model.eval(), weights, x))(weights)   # (n, d, P) in all
        K = J.reshape(n * d, P) @ J.reshape(n * d, P).T

    J is not held as a whole unless it fits into ``memory``: the P entries of the parameters are walked in
    ceil(n d P itemsize / memory) groups (a group may begin and end inside a weight), and K += J_g J_g^T for the columns
    J_g of each. Every example is differentiated once per group: a forward pass and d backward passes, so that the whole
    costs groups * n * (1 + d) passes and about (n d)^2 P multiplications, the product being taken for the upper half
    of K alone. Beside K, (n d)^2 entries, it takes a copy of the model's parameters, ``memory`` bytes for J_g, up to
    about as much again for the gradients of the examples that are differentiated at once (a part of a weight needs the
    gradient of the whole weight, and at least one output is differentiated), and those examples' activations. Where
    autograd adds gradients up, as of a weight that two layers share, each of them counts: some three times ``memory``
    beside J_g, then.

    Args:
        model: any module whose forward runs under torch.func.vmap (those of recurrent layers do not). Parameters
            that require grad are differentiated, the others and the buffers are constants; a tied one counts once.
            They are replaced by copies, which takes a model that reaches them by their registered names alone.
        x: (n, ...) on the model's device, n >= 1, or a tuple of such tensors: the model's positional arguments.
        outputs: "all": K is (n d, n d), row i * d + c being output c of example i, so that targets (n, d) go with it.
            "sum": (n, n), the kernel of the sum over the d outputs. An int: (n, n), of that output, negative ones from
            the end. A model with outputs (n,) has d = 1.
        chunk: examples differentiated at once, at least 1.
        memory: bytes of J_g, at least 1; a column of J is never split.
        dtype: float32 or float64, of K and of the sums in it; None: that of the outputs, float32 at least. The
            Jacobian itself is computed in the model's own dtype.
        progress: show a tqdm bar, if tqdm is installed.

    Conventions: the model runs in eval mode (BatchNorm uses its running statistics), outside autocast, and a compiled
    one eagerly. Each submodule's mode, parameters, their requires_grad and .grad, buffers, random numbers and x are
    afterwards as they were, also after an exception and where the model writes to them. A float32 product follows
    `torch.set_float32_matmul_precision`.

    Returns:
        K, exactly symmetric, on x's device, without a graph.

    Raises:
        TypeError, ValueError: an argument of another kind or value; outputs that are no floating-point tensor (n,) or
            (n, d), that are NaN, that require grad by a weight reached otherwise than by its name, or that depend on
            the rest of the batch; derivatives that are not finite, or whose squares are not. Whether examples meet is
            seen by the outputs of the first and last example of one chunk (or of two examples), each beside those of
            the example alone: not at a head of zeros, and not where it changes less than the square root of the
            dtype's rounding, relative to the largest output (3e-4 in float32; on an accelerator 3 %, that of TF32), or
            16 roundings of one.
        RuntimeError: from torch.func, where it cannot map or differentiate an operation of the model.

    Source: the empirical tangent kernel of Jacot et al., NeurIPS 2018, as the kernel of Harutyunyan et al., ICLR 2023
    (arXiv 2301.12245); the walk over groups of parameters is ours.
    """
    arguments.model(model)
    inputs = arguments.inputs(x)
    arguments.outputs(outputs)
    arguments.at_least_one("chunk", chunk)
    arguments.at_least_one("memory", memory)
    arguments.kernel_dtype(dtype)
    with undisturbed(model, inputs[0].device):
        function = Evaluated(model, inputs, outputs, chunk)
        dtype = dtype or torch.promote_types(function.dtype, torch.float32)
        return _kernel(function, inputs, Walk(function, inputs, chunk, memory), memory, dtype, progress)


def _kernel(
    function: Evaluated, inputs: tuple[Tensor, ...], walk: Walk, memory: int, dtype: torch.dtype, progress: bool
) -> Tensor:
    examples = len(inputs[0])
    rows = examples * function.width
    parts = groups(
        {name: each.numel() for name, each in function.weights.items()}, max(1, memory // (rows * dtype.itemsize))
    )
    options = {"dtype": dtype, "device": inputs[0].device}
    kernel = torch.zeros(rows, rows, **options)
    with _bar(examples * len(parts), progress) as bar:
        for group in parts:
            block = torch.empty(rows, width(group), **options)
            for finished in walk.fill(block, group):
                if bar is not None:
                    bar.update(finished)
            _add(kernel, block)
            arguments.derivatives(kernel.diagonal())
            del block  # before the next one is allocated
    return _mirrored(kernel)


def _add(kernel: Tensor, block: Tensor) -> None:
    """Adds J_g J_g^T to the blocks of K on the diagonal and above."""
    for start in range(0, len(block), _BLOCK):
        several = block[start : start + _BLOCK]
        kernel[start : start + _BLOCK, start:].addmm_(several, block[start:].mT)


def _mirrored(kernel: Tensor) -> Tensor:
    """K with its upper half below the diagonal too."""
    for start in range(0, len(kernel), _BLOCK):
        stop = start + _BLOCK
        square = kernel[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).mT)
        kernel[stop:, start:stop] = kernel[start:stop, stop:].mT
    return kernel


def _bar(total: int, progress: bool) -> Any:
    """A progress bar over the examples of all groups, or a context of None: tqdm is an extra."""
    if not progress:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(total=total, desc="tangent kernel", unit="example")
