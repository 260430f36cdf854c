"""The distribution p that minimises F(p) = sum_c t_c (-log p_c + Q_c(1 - p_c)), Q_c(u) = sum_m eps_{c,m} u^m.

F is the perturbed loss of a student p up to the entropy of the teacher t. It is separable but for sum p = 1, so a
Newton step costs O(C): with g = Q'(u), r = t (1 + p g) and R = sum r, the gradient of F in log p is -r, and with a
multiplier lam of the constraint (R at a solution) its Hessian is diagonal:

    D_c = lam p_c - t_c p_c g_c + t_c p_c^2 Q''_c = t_c (1 + p_c^2 Q''_c) + (lam p_c - r_c)
    delta_c = (r_c - lam p_c) / D_c,  lam = sum(p r / D) / sum(p^2 / D)  so that sum p delta = 0
    p <- softmax(log p + a delta)

The first part of D alone is Newton in p; both parts are Newton in log p; at a solution they agree. The larger of the
two, |.| of it where F is not convex, takes about seven steps from p = t. In this module teacher is (rows, C) float64,
rows summing to one, and coefficients (M, 1, 1) or (M, 1, C); a class of teacher probability zero keeps zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 100
_HALVINGS = 40
_SMALL = 1e-9  # of a step in log p: the last one is taken to first order, with an error of its square
_LONGEST = 5.0  # of a step in log p: exp must not overflow
_ARMIJO = 1e-4
_FLOOR = 1e-4  # of D in units of the teacher's probability, where F has no curvature
_ROUNDING = 1e-14
_ABSENT = -1e4  # log p of a class with teacher probability zero: exp of it is zero, and 0 times it too


class Series(NamedTuple):
    """Q and its first two derivatives at u = 1 - p, each (rows, C)."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


class _Point(NamedTuple):
    log_p: Tensor
    p: Tensor
    slope: Tensor
    curvature: Tensor
    objective: Tensor


def series(p: Tensor, coefficients: Tensor) -> Series:
    """Horner from the top order, for the polynomial and two derivatives at once."""
    u = 1.0 - p
    value = coefficients[-1].expand_as(p).clone()
    slope, half_curvature = torch.zeros_like(p), torch.zeros_like(p)
    for coefficient in [*coefficients[:-1].flip(0), torch.zeros_like(coefficients[0])]:
        torch.addcmul(slope, half_curvature, u, out=half_curvature)
        torch.addcmul(value, slope, u, out=slope)
        torch.addcmul(coefficient, value, u, out=value)
    return Series(value, slope, half_curvature.mul_(2.0))


def minimise(teacher: Tensor, coefficients: Tensor) -> Tensor:
    """The p (rows, C) that descent of F reaches from the teacher; rows that arrive leave the iteration."""
    result, rows = teacher.clone(), torch.arange(len(teacher), device=teacher.device)
    log_p = torch.where(teacher > 0, teacher.log(), _ABSENT)
    point = _evaluate(log_p, teacher, teacher, coefficients)
    for _ in range(_STEPS):
        direction, decrement = _direction(point, teacher)
        length = direction.abs().amax(-1, keepdim=True)
        moving = (length[:, 0] > _SMALL).nonzero()[:, 0]
        if len(moving) < len(rows):
            result[rows] = torch.addcmul(point.p, point.p, direction)  # rows still moving are written again later
            rows, teacher, direction, decrement, length = (
                part[moving] for part in (rows, teacher, direction, decrement, length)
            )
            point = _Point(*(part[moving] for part in point))
        if len(rows) == 0:
            return result
        point = _descend(point, direction, decrement, length, teacher, coefficients)
    result[rows] = point.p
    return result


def _evaluate(log_p: Tensor, p: Tensor, teacher: Tensor, coefficients: Tensor) -> _Point:
    value, slope, curvature = series(p, coefficients)
    objective = value.sub_(log_p).mul_(teacher).sum(-1, keepdim=True)
    return _Point(log_p, p, slope, curvature, objective)


def _direction(point: _Point, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """delta (rows, C), and sum D delta^2 (rows, 1), by which F falls for a unit of the step."""
    p = point.p
    r = torch.addcmul(teacher, teacher * p, point.slope)
    metric = _metric(point, teacher, r)
    weight = p / metric
    lam = (weight * r).sum(-1, keepdim=True) / (weight * p).sum(-1, keepdim=True)
    slope = r.sub_(lam * p)
    direction = slope / metric
    return direction, slope.mul_(direction).sum(-1, keepdim=True)


def _metric(point: _Point, teacher: Tensor, r: Tensor) -> Tensor:
    """D (rows, C), with which the step descends: it is positive, or so on the directions with sum p delta = 0."""
    p = point.p
    excess = (r.sum(-1, keepdim=True) * p).sub_(r).clamp_(min=0.0)
    hessian = torch.addcmul(teacher, teacher * p, p * point.curvature).add_(excess)
    size = torch.maximum(hessian.abs(), _FLOOR * teacher).clamp_(min=torch.finfo(p.dtype).tiny)
    negative = hessian < 0
    if not bool(negative.any()):
        return size
    # One negative entry is no harm if the constraint outweighs it: Newton with it ends in fewer steps.
    signed = torch.where(negative, -size, size)
    constrained = (negative.sum(-1, keepdim=True) == 1) & ((p * p / signed).sum(-1, keepdim=True) < 0)
    return torch.where(constrained, signed, size)


def _descend(
    point: _Point, direction: Tensor, decrement: Tensor, length: Tensor, teacher: Tensor, coefficients: Tensor
) -> _Point:
    """The longest of the steps a = 1, 1/2, 1/4, ... after which F has fallen enough (Armijo), row by row."""
    step = (_LONGEST / length).clamp_(max=1.0)
    orders = torch.arange(1, len(coefficients) + 1, device=teacher.device).view(-1, 1, 1)
    slack = _ROUNDING * (10.0 + (orders * coefficients.abs()).sum(0).amax())
    for _ in range(_HALVINGS):
        log_p = torch.addcmul(point.log_p, step, direction)
        p = log_p.exp()
        mass = p.sum(-1, keepdim=True)
        trial = _evaluate(log_p.sub_(mass.log()), p.div_(mass), teacher, coefficients)
        fell = trial.objective <= point.objective - _ARMIJO * step * decrement + slack
        if bool(fell.all()):
            break
        step = torch.where(fell, step, 0.5 * step)
    return trial
