"""The perturbed-series loss (PTLoss)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .base import Loss, divergence_sum, jit, tl

LARGEST_ORDER = 8
_PADDING = 16
"""Columns are padded to a multiple of this: C++ reads the table by whole vectors."""


@jit
def _coefficient(table, order: tl.constexpr, column):
    if table.per_class:  # noqa: SIM108 - constant branches, of which one is compiled
        value = tl.load(table.pointer + order * table.width + column, mask=column < table.width, other=0.0)
    else:
        value = tl.load(table.pointer + order)
    return value


@jit
def _term(log_ratio, q, p, column, parameter, table):
    # sum_m eps_m x^m = x b(x): b and its slope by Horner from the top order.
    x = 1.0 - q
    b = tl.zeros_like(q) + _coefficient(table, table.orders - 1, column)
    slope = tl.zeros_like(q)
    for step in tl.static_range(1, table.orders):
        slope = slope * x + b
        b = b * x + _coefficient(table, table.orders - 1 - step, column)
    return tl.where(p == 0.0, 0.0, p * (log_ratio + x * b)), (q - p) - p * q * (b + x * slope)


@dataclass(frozen=True, eq=False)
class Perturbed(Loss):
    """KL(p || q) + sum_c p_c sum_{m=1..M} eps_{c,m} (1 - q_c)^m in nats, p the teacher and q the student.

    The series log x = -sum_m (1 - x)^m / m of the cross-entropy with 1/m replaced by 1/m + eps_{c,m} in its first M
    orders and kept exact beyond them. Equivalent to::

        series = (eps * (1 - q).unsqueeze(-1) ** torch.arange(1, M + 1)).sum(-1)
        (F.kl_div(log_q, log_p, log_target=True, reduction="none") + p * series).sum(-1)

    of which nothing is allocated. Its minimum over q is not at p but at another, *proxy* teacher
    (`kdkernels.methods.pt.proxy_teacher`). ``eps = 0`` is `ForwardKL`. A negative coefficient can make the value
    negative; with one below -1/m, where the series' order m changes its sign, the loss may also be non-convex, of which
    a UserWarning tells. The gradient in log q is -r, r_c = p_c (1 + q_c g_c),
    g_c = sum_m m eps_{c,m} (1 - q_c)^(m-1); the term adds q.

    Args:
        coefficients: eps, floating point, (M,) - the same for every class - or (C, M) with C the vocabulary;
            1 <= M <= 8. On the device of the logits. They are constants: one that requires grad raises, because the
            loss's minimum over eps is no aim (`kdkernels.methods.pt.search_coefficients` chooses them). They are
            copied: a later change of the tensor changes nothing. In a module (`kdkernels.DivergenceLoss`) they are the
            buffer ``coefficients``.

    Raises:
        TypeError, ValueError: coefficients of another kind, shape or value.

    Source: Zhang et al., "Knowledge Distillation with Perturbed Loss: From a Vanilla Teacher to a Proxy Teacher",
    KDD 2024 (arXiv 2305.05010), equations 4-7 (no temperature and no T^2 there); the gradient is ours.
    """

    coefficients: Tensor
    name: ClassVar[str] = "perturbed"
    term = _term
    _table: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checked(self.coefficients)
        with torch.inference_mode(False):
            self._hold(self.coefficients.detach().clone())
        if not torch.compiler.is_compiling():
            _look_at(self.coefficients, stacklevel=4)

    def _hold(self, coefficients: Tensor) -> None:
        object.__setattr__(self, "coefficients", coefficients)
        with torch.inference_mode(False):  # a loss outlives the block that it is made in
            object.__setattr__(self, "_table", _table_of(coefficients))

    # By identity: Loss compares the fields that it has, which are none, and tensors do not compare to a bool.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Perturbed({'x'.join(map(str, self.coefficients.shape))} coefficients)"

    @property
    def classes(self) -> int | None:
        return self.coefficients.shape[0] if self.coefficients.dim() == 2 else None

    def table(self, dtype: torch.dtype) -> Tensor:
        return self._table.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"coefficients": self.coefficients}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Perturbed:
        if torch.compiler.is_compiling():  # which follows a constructor, but not `copy` in every version
            return type(self)(tensors["coefficients"])
        loss = copy.copy(self)
        loss._hold(checked(tensors["coefficients"]))
        return loss

    def look(self) -> None:
        _look_at(self.coefficients, stacklevel=3)

    def definition(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        distance = 1.0 - log_q.exp()  # not expm1, whose derivative is (q - 1) + 1
        table = self._table[:, : self.classes].to(log_q.dtype)
        series = sum(row * distance**m for m, row in enumerate(table, 1))
        return divergence_sum(log_p, log_q) + (log_p.exp() * series).sum(-1)


def checked(coefficients: object) -> Tensor:
    """The coefficients, or an error that says what about them is not as it must be."""
    if not isinstance(coefficients, Tensor):
        raise TypeError(
            f"coefficients must be a torch.Tensor, got {type(coefficients).__name__}: pass torch.tensor(coefficients)"
        )
    if coefficients.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise TypeError(f"coefficients must be float32, float16, bfloat16 or float64, got {coefficients.dtype}")
    if coefficients.layout is not torch.strided:
        raise TypeError(f"coefficients must be a dense tensor, got layout {coefficients.layout}")
    shape = tuple(coefficients.shape)
    if len(shape) not in (1, 2) or not 1 <= shape[-1] <= LARGEST_ORDER or shape[0] == 0:
        raise ValueError(f"coefficients must have shape (M,) or (C, M) with 1 <= M <= {LARGEST_ORDER}, got {shape}")
    if coefficients.requires_grad:
        raise ValueError(
            "coefficients must not require grad: they are constants of the loss, which is linear in them, so that "
            "descending it would drive them to minus infinity; choose them with "
            "kdkernels.methods.pt.search_coefficients, or pass coefficients.detach()"
        )
    return coefficients


def _look_at(coefficients: Tensor, stacklevel: int) -> None:
    """What only the values tell, where there are any: none on meta, and none that are to be known under a transform."""
    if coefficients.is_meta or type(coefficients) is not Tensor or is_functorch_wrapped_tensor(coefficients):
        return
    finite, least = torch.isfinite(coefficients.float()).all(), _margin(coefficients).min()
    finite, least = torch.stack([finite.to(least.dtype), least]).tolist()
    if not finite:
        raise ValueError("coefficients must be finite in float32, got an infinity, a NaN or a larger number among them")
    if least < 0:
        warnings.warn(
            "some coefficient of order m is below -1/m: the perturbed loss may be non-convex",
            stacklevel=stacklevel,
        )


def _margin(coefficients: Tensor) -> Tensor:
    """eps_m + 1/m: how far each order is from changing the series' sign."""
    orders = torch.arange(1, coefficients.shape[-1] + 1, device=coefficients.device)
    return coefficients.double() + (1.0 / orders.float()).double()


def _table_of(coefficients: Tensor) -> Tensor:
    """(M, 1), or (M, C) with zero columns up to a multiple of 16; contiguous."""
    by_order = coefficients.detach().reshape(-1, coefficients.shape[-1]).T
    if by_order.dtype in (torch.float16, torch.bfloat16):
        by_order = by_order.float()
    columns = by_order.shape[1]
    if coefficients.dim() == 1:
        return by_order.clone(memory_format=torch.contiguous_format)
    return F.pad(by_order, (0, -columns % _PADDING)).contiguous()
