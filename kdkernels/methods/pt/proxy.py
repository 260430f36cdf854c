"""The proxy teacher: the distribution that a student of the perturbed loss is drawn to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .newton import minimise, series

_ENTRIES = 2**17  # of a block of rows: some twenty float64 tensors of that size stay in a cache, and below 32 MiB
_ENTRIES_ON_DEVICE = 2**20
_ROOT_STEPS = 200
_RESIDUAL = 1e-9
_FLAT = -1e-9


class ProxyTeacher(NamedTuple):
    """Proxy teachers ``probs`` (..., C) in the teacher's dtype, and how far they can be trusted.

    With r_c = t_c (1 + p_c g_c), g_c = sum_m m eps_{c,m} (1 - p_c)^(m-1) and R = sum r, the loss's gradient in the
    student's logits is R p - r. ``residual`` (...), float64, is max_c |R p_c - r_c| / max(1, |R|) of p before it was
    rounded to the dtype. ``converged`` (...), bool, tells that this is at most 1e-9 and that the loss curves upwards
    there (a local minimum and no saddle). A local minimum is the minimum where the loss is convex, which it is with
    every eps_m >= -1/m, and always for M = 1.
    """

    probs: Tensor
    residual: Tensor
    converged: Tensor


@torch.no_grad()
def proxy_teacher(teacher_probs: Tensor, coefficients: Tensor) -> ProxyTeacher:
    """The student distribution that minimises the perturbed loss of each row, argmin_p L(t, p).

    L(t, p) = KL(t || p) + sum_c t_c sum_{m=1..M} eps_{c,m} (1 - p_c)^m, in nats, as `kdkernels.Perturbed` has it.
    Equivalent to minimising L over the logits of p in float64, from p = t, row by row. Computed by a scalar root
    (M = 1) or a Newton method of O(C) per row and step, in float64, on the teacher's device, in blocks of rows; no
    gradient flows through it.

    Conventions: rows are divided by their sum first. p is sought among the distributions with the teacher's support: a
    class with t_c = 0 has p_c = 0, so a one-hot teacher is its own proxy. (With coefficients so negative that R < 0 the
    loss would fall further if mass moved to such classes.) Where some eps_m < -1/m the loss may have several minima or,
    with classes of next to no teacher probability, a minimum that is nearly flat: what descent from the teacher reached
    within 100 steps is returned, and ``converged`` is False where that is no local minimum.

    Args:
        teacher_probs: (..., C), float32, float16, bfloat16 or float64, not negative, rows summing to one - at the
            temperature that the loss is used with.
        coefficients: eps, floating point and finite, (M,) for every class alike or (C, M), 1 <= M <= 8, on the
            teacher's device.

    Returns:
        `ProxyTeacher`: probs (..., C), residual (...), converged (...). Look at ``converged.all()``.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value; rows that do not sum to one.

    Source: the proxy teacher is of Zhang et al., KDD 2024 (arXiv 2305.05010), equations 17-19, who minimise a
    difference of losses numerically; its definition as an argmin and the solver are ours.
    """
    checks.probabilities("teacher_probs", teacher_probs)
    checks.coefficients(coefficients, teacher_probs)
    shape = teacher_probs.shape
    teacher = teacher_probs.reshape(-1, shape[-1]).double()
    probs, residual, converged = solve(teacher / teacher.sum(-1, keepdim=True), by_order(coefficients))
    return ProxyTeacher(
        probs.to(teacher_probs.dtype).reshape(shape), residual.reshape(shape[:-1]), converged.reshape(shape[:-1])
    )


def by_order(coefficients: Tensor) -> Tensor:
    """(M,) or (C, M) of any dtype to what `solve` takes: (M, 1, 1) or (M, 1, C) in float64."""
    return coefficients.double().reshape(-1, coefficients.shape[-1]).T.unsqueeze(1).contiguous()


def solve(teacher: Tensor, coefficients: Tensor) -> ProxyTeacher:
    """`proxy_teacher` of rows (N, C) that sum to one, in float64, with coefficients as `by_order` gives them."""
    entries = _ENTRIES if teacher.device.type == "cpu" else _ENTRIES_ON_DEVICE
    blocks = teacher.split(max(1, entries // teacher.shape[1]))
    parts = zip(*(_solve_block(block, coefficients) for block in blocks), strict=True)
    return ProxyTeacher(*(torch.cat(part) for part in parts))


def _solve_block(teacher: Tensor, coefficients: Tensor) -> ProxyTeacher:
    minimiser = _root if len(coefficients) == 1 else minimise
    p = minimiser(teacher, coefficients)
    p = p / p.sum(-1, keepdim=True)
    return ProxyTeacher(p, *_report(p, teacher, coefficients))


def _root(teacher: Tensor, coefficients: Tensor) -> Tensor:
    """M = 1: p_c = t_c / (lam - eps_c t_c), and sum p = 1 decides lam.

    1 / sum p is increasing and concave in lam > max_c eps_c t_c: Newton on 1 / sum p = 1 climbs to the root, and never
    passes it, from lam = max_c t_c (1 + eps_c), where one p is 1 and so sum p >= 1. A step not upwards is rounding.
    """
    pole = torch.where(teacher > 0, coefficients[0] * teacher, -torch.inf)  # p = 0 where the teacher is 0
    lam = (teacher + pole).amax(-1, keepdim=True)
    for _ in range(_ROOT_STEPS):
        weight = (lam - pole).reciprocal_()
        p = teacher * weight
        total = p.sum(-1, keepdim=True)
        step = total * (total - 1.0) / weight.mul_(p).sum(-1, keepdim=True)
        moving = step > 2 * torch.finfo(p.dtype).eps * lam.abs()
        if not bool(moving.any()):
            break
        lam = torch.where(moving, lam + step, lam)
    return p


def _report(p: Tensor, teacher: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The residual (N,), and whether p (N, C) is a local minimum to rounding (N,).

    In log p the Hessian of the loss with its constraint is diag(t k), k = 1 + p^2 Q'', on the directions with
    sum p delta = 0. It is not negative there if no k is, or if one is and sum p^2 / (t k) <= 0.
    """
    _, slope, curvature = series(p, coefficients)
    r = torch.addcmul(teacher, teacher * p, slope)
    total = r.sum(-1, keepdim=True)
    residual = (total * p - r).abs().amax(-1) / total[:, 0].abs().clamp(min=1.0)
    k = torch.where(teacher > 0, 1.0 + p * p * curvature, 1.0)
    downwards = (k < _FLAT).sum(-1)
    reduced = torch.where(teacher > 0, p * p / (teacher * k), 0.0).sum(-1)
    minimum = (downwards == 0) | ((downwards == 1) & (reduced <= 0.0))
    return residual, (residual <= _RESIDUAL) & minimum
