"""What a loss is: a frozen dataclass that carries its parameters, its textbook definition and its Triton term."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

tl: Any = None  # Triton's language: it takes this place in a term's module when the term is first wanted


class jit:
    """A Triton function of which nothing is made until a kernel wants it: importing Triton takes longer than all else.

    Read from a class (`Loss.term`) it is what `triton.jit` makes of it, so that TRITON_INTERPRET=1 counts if it is set
    by then. `tl` and the functions that it calls, names of its module, are put in their places first: Triton looks
    there. A dataclass would read what it has an annotation for: `term = _term` has none.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __get__(self, instance: object, owner: type) -> Any:
        return self.made

    @functools.cached_property
    def made(self) -> Any:
        import triton

        scope = self.function.__globals__
        scope["tl"] = triton.language
        for name in self.function.__code__.co_names:
            if isinstance(scope.get(name), jit):
                scope[name] = scope[name].made
        return triton.jit(self.function)


class constexpr(jit):
    """A function of Python's that is called while a term is compiled, made as late."""

    @functools.cached_property
    def made(self) -> Any:
        from triton.runtime.jit import constexpr_function

        return constexpr_function(self.function)


@constexpr
def is_cuda() -> bool:
    """Whether a term is being compiled for an NVIDIA GPU; not so in Triton's interpreter."""
    from triton import knobs
    from triton.language import target_info

    return not knobs.runtime.interpret and bool(target_info.is_cuda())


__all__ = ["Loss", "divergence_sum", "in_open_unit_interval", "is_cuda", "jit", "log_mixture", "tl"]


@dataclass(frozen=True)
class Loss:
    """A row loss ``L = sum_v f(log q_v, log p_v)`` of a student q and a teacher p.

    A loss gives each backend one small pure function, its *term*: ``(f, h)`` with ``h = df / d(log q)``. The gradient
    ``dL/dz_v = (h_v - q_v sum_u h_u) / T`` does not change when a multiple of q is added to h, so a term may return
    h up to such a multiple; each does so in the way that loses the fewest digits near q = p.
    """

    name: ClassVar[str]
    """The spelling that every language shares: csrc/terms/<name>.h, the C++ list, the operator's argument."""
    term: ClassVar[Any]
    """Triton: ``term(log_ratio, q, p, column, parameter, table) -> (f, h)`` over tiles of any one shape; table is None
    or the `kernels.divergence_row.Table` of what `table` gives.

    log_ratio is log(p / q), which the schedules form before log q and log p are rounded: a divergence depends on the
    logarithms through it, and their own rounding, alike in many columns, would be an error of some 1e-6 in the value.
    """
    balanced: ClassVar[bool] = False
    """True where sum_v h_v = 0 by construction, so that the gradient needs no sum of h and one walk fewer."""

    def parameter(self) -> float:
        """The loss's scalar parameter, handed to kernels at run time (0 where it has none)."""
        return 0.0

    @property
    def classes(self) -> int | None:
        """How many classes the loss has parameters for; None where it fits any vocabulary."""
        return None

    def table(self, dtype: torch.dtype) -> Tensor | None:
        """Parameters that kernels get by pointer, (orders, width) contiguous in dtype, or None where there are none.

        width is 1 where all classes share them, otherwise the classes rounded up to a multiple of 16, padded with 0.
        """
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that are tensors, by name. A module that holds the loss keeps them as buffers of these names,
        so that they move with it and are in its state_dict."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Loss:
        """This loss with others for its `tensors`: they are not copied, and no value of them is looked at."""
        return self

    def look(self) -> None:
        """Raise ValueError where the values of `tensors` are none that the loss can have. It waits for their device."""

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """The textbook formula in plain, differentiable PyTorch: (..., vocab) log-probabilities to (...) nats."""
        raise NotImplementedError


def in_open_unit_interval(name: str, value: float, at_zero: str, at_one: str) -> None:
    """Check 0 < value < 1; the message names what the loss becomes at either end."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's scalars are Real too
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1 (0: {at_zero}; 1: {at_one}), got {value}")


def divergence_sum(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) = sum a (log a - log b) over the last dimension, with 0 log 0 = 0 in the value and the gradient."""
    a = log_a.exp()
    counted = a != 0  # not `a > 0`: a NaN has to stay one
    # Both logarithms are replaced before the difference is taken: a `where` after it would still leave NaN gradients.
    difference = torch.where(counted, log_a, 0.0) - torch.where(counted, log_b, 0.0)
    return (torch.where(counted, a, 0.0) * difference).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b), -inf where both are 0, with zero gradients there."""
    absent = torch.isneginf(log_a) & torch.isneginf(log_b)
    a = torch.where(absent, 0.0, log_a) + math.log(weight)
    b = torch.where(absent, 0.0, log_b) + math.log1p(-weight)
    return torch.where(absent, -torch.inf, torch.logaddexp(a, b))
