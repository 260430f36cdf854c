"""The auxiliary-variable loss in float64, from the formulas of papers.md alone, with whole (rows, bank) tensors.

    p(i|x) = softmax_i(<h^, v_i> / kappa),  p_aux = sum_i q_i p(i|x),  p_S = (1 - lambda) s + lambda p_aux
    L = T^2 KL(t || p_S) + beta KL(p_T(i|x) || p(i|x)),  s, t = softmax(student / T), softmax(teacher / T)

A row's own entries are no part of its bank, in neither posterior; a row that has none left has p_aux = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from oracle import Answer, times_log
from tolerance import Scale
from torch import Tensor

INF = math.inf


class Bank(NamedTuple):
    """Unit (or zero) features (L, dim), distributions (L, C) and sample numbers (L,), all on the CPU."""

    features: Tensor
    probs: Tensor
    index: Tensor


class Both(NamedTuple):
    """What belongs to the student's logits, and what to its features: two answers, or two scales."""

    student: Answer | Scale
    features: Answer | Scale


def stored(bank: torch.nn.Module) -> Bank:
    """The filled part of an InstanceBank, as it is rounded there."""
    features, probs, index = (x[: len(bank)].detach().cpu() for x in (bank.features, bank.probs, bank.index))
    return Bank(features.double(), probs.double(), index)


def unit(features: Tensor) -> Tensor:
    """Rows of length one; a zero row stays zero."""
    rows = features.detach().cpu().double()
    norm = rows.norm(dim=-1, keepdim=True)
    return torch.where(norm == 0, 0.0, rows / norm)


def _own(rows: int, bank: Bank, index: Tensor | None) -> Tensor:
    if index is None:
        return torch.zeros(rows, len(bank.index), dtype=torch.bool)
    return index.cpu()[:, None] == bank.index


def log_posterior(features: Tensor, bank: Bank, kappa: float, index: Tensor | None = None) -> Tensor:
    """log p(i|x) (rows, L), -inf for own entries."""
    own = _own(len(features), bank, index)
    similarities = (unit(features) @ bank.features.T / kappa).masked_fill(own, -INF)
    return torch.where(own, -INF, similarities.log_softmax(-1))


def posterior(features: Tensor, bank: Bank, kappa: float, index: Tensor | None = None) -> Tensor:
    """p_aux (rows, C)."""
    return log_posterior(features, bank, kappa, index).exp() @ bank.probs


class _Terms(NamedTuple):
    log_s: Tensor
    log_t: Tensor
    log_w: Tensor
    log_v: Tensor  # the teacher's posterior over the bank
    log_p: Tensor


def _terms(student, teacher, student_features, teacher_features, bank, kappa, mixture, temperature, index) -> _Terms:
    log_s, log_t = ((x.detach().cpu().double() / temperature).log_softmax(-1) for x in (student, teacher))
    log_w, log_v = (log_posterior(x, bank, kappa, index) for x in (student_features, teacher_features))
    shares = torch.tensor([1.0 - mixture, mixture], dtype=torch.float64).log()
    log_p = torch.logaddexp(shares[0] + log_s, shares[1] + (log_w.exp() @ bank.probs).log())
    return _Terms(log_s, log_t, log_w, log_v, log_p)


def auxiliary(
    student: Tensor,
    teacher: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    bank: Bank,
    *,
    kappa: float,
    mixture: float,
    beta: float,
    temperature: float,
    index: Tensor | None = None,
) -> tuple[Both, Both]:
    """(answers, scales): one value per row, and the gradients of their sum in the logits and in the features."""
    arguments = (student, teacher, student_features, teacher_features, bank, kappa, mixture, temperature, index)
    log_s, log_t, log_w, log_v, log_p = _terms(*arguments)
    s, t, w, v = log_s.exp(), log_t.exp(), log_w.exp(), log_v.exp()
    square = temperature**2
    values = square * times_log(t, log_t, log_p).sum(-1) + beta * times_log(v, log_v, log_w).sum(-1)

    shared = (t == 0) | (log_p == -INF)
    ordinary = torch.where(shared, 0.0, t * (math.log1p(-mixture) + log_s - log_p).exp()) if mixture < 1 else 0.0 * t
    by_class = torch.where(shared, 0.0, mixture * t * (-log_p).exp())
    responsibility = w * (by_class @ bank.probs.T)
    logits_gradient = temperature * (s * ordinary.sum(-1, keepdim=True) - ordinary)
    slope = square * (w * responsibility.sum(-1, keepdim=True) - responsibility) + beta * (w - v)
    size = square * (w * responsibility.sum(-1, keepdim=True) + responsibility) + beta * (w + v)

    direction = unit(student_features)
    norm = student_features.detach().cpu().double().norm(dim=-1, keepdim=True)
    pull = slope @ bank.features / kappa
    pull = pull - direction * (direction * pull).sum(-1, keepdim=True)
    sizes = size @ bank.features.abs() / kappa
    sizes = sizes + direction.abs() * (size * (direction @ bank.features.T).abs()).sum(-1, keepdim=True) / kappa
    pull, sizes = (torch.where(norm == 0, 0.0, x / norm) for x in (pull, sizes))

    # What logarithms weigh, and how coarse they are: similarities of 1 / kappa, from a product, two norms and a sum.
    weigh = lambda probability, log: -times_log(probability, log, torch.zeros_like(log)).sum(-1)  # noqa: E731
    weighed = square * (1.0 + weigh(s, log_s) + weigh(t, log_t) + weigh(t, log_p))
    weighed = weighed + beta * (1.0 + weigh(v, log_v) + weigh(v, log_w))
    depth = 2.0 + 1.0 / kappa if mixture > 0 or beta > 0 else 1.0
    answers = Both(Answer(values, logits_gradient), Answer(values, pull))
    scales = (Scale(weighed, temperature * (s + t)), Scale(weighed, sizes))
    return answers, Both(*(scale.deeper(depth) for scale in scales))


def eager(
    student: Tensor,
    teacher: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    bank: Bank,
    *,
    kappa: float,
    mixture: float,
    beta: float,
    temperature: float,
    index: Tensor | None = None,
) -> Both:
    """The same as a PyTorch user would compose it at that dtype: half precisions are computed with in float32."""
    given = (student, teacher, student_features, teacher_features)
    compute = torch.float64 if torch.float64 in {x.dtype for x in given} else torch.float32
    z, zt, h, ht = (x.detach().cpu().clone() for x in given)
    z.requires_grad_()
    h.requires_grad_()
    features, probs = bank.features.to(compute), bank.probs.to(compute)
    own = _own(len(z), bank, index)
    some = ~own.all(-1, keepdim=True)
    log_w, log_v = (
        (F.normalize(x.to(compute), dim=-1) @ features.T / kappa).masked_fill(own, -1e30).log_softmax(-1)
        for x in (h, ht)
    )
    p = (1 - mixture) * (z.to(compute) / temperature).softmax(-1) + mixture * (log_w.exp() * some) @ probs
    log_t = (zt.to(compute) / temperature).log_softmax(-1)
    values = temperature**2 * F.kl_div(p.log(), log_t, log_target=True, reduction="none").sum(-1)
    values = values + beta * (some * F.kl_div(log_w, log_v, log_target=True, reduction="none")).sum(-1)
    gradients = torch.autograd.grad(values.sum(), (z, h), materialize_grads=True)
    return Both(*(Answer(values.detach().double(), gradient.double()) for gradient in gradients))
