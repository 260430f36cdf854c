"""Over a batch in chunks of rows: the loss of each row and its gradients, from three (chunk x entries) tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import api
from .membership import membership_divergence
from .mixture import MixtureDivergence
from .posterior import Entries, Own, chunks, unit_rows


class Settings(NamedTuple):
    kappa: float
    mixture: float
    beta: float
    temperature: float


class Wanted(NamedTuple):
    """Which gradients."""

    student: bool
    features: bool


class Batch(NamedTuple):
    """What is no function of the student; all floating point in the dtype of the arithmetic."""

    teacher: Tensor
    """(B, C) logits"""
    features: Tensor
    """(B, dim), the teacher's unit features"""
    entries: Entries
    index: Tensor | None
    settings: Settings


def evaluate(student: Tensor, features: Tensor, batch: Batch, wanted: Wanted) -> tuple[Tensor | None, ...]:
    """Values (B,), their gradients in the logits (B, C), None without a mixture, and in the features, if wanted."""
    features = features.detach().to(batch.teacher.dtype)
    unit, length = unit_rows(features)
    walk = _Walk(student.detach(), unit, batch, wanted)
    parts = [walk.chunk(part) for part in chunks(len(unit), batch.entries)]
    values, student_gradient, slope = (
        None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)
    )
    if slope is not None:
        slope -= unit * (unit * slope).sum(-1, keepdim=True)  # to change a feature's length is to change nothing
        slope /= length
    return values, student_gradient, slope


class _Walk:
    """Over a batch, chunk by chunk; what is here has (B, C) or (B, dim) elements at most."""

    def __init__(self, student: Tensor, unit: Tensor, batch: Batch, wanted: Wanted) -> None:
        self.unit, self.batch, self.wanted = unit, batch, wanted
        self.own = None if batch.index is None else Own(batch.index, batch.entries)
        temperature = batch.settings.temperature
        if batch.settings.mixture:
            self.log_s = api.log_softmax(student.to(unit.dtype), temperature=temperature)
            self.log_t = api.log_softmax(batch.teacher, temperature=temperature)

    def chunk(self, part: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Values (rows,), gradients in the logits (rows, C) and in the unit features (rows, dim).

        With u the similarities, w = softmax(u / kappa) and w' the teacher's,
        d/du = (w (a - <w, a>) + beta (w - w')) / kappa, where a_i = sum_y q_i(y) dL/dp_aux(y).
        """
        entries, (kappa, mixture, beta, _) = self.batch.entries, self.batch.settings
        exclude = None if self.own is None else self.own.excluder(part)
        u = self._similarities(self.unit[part], exclude)
        values, student, slope = 0.0, None, None
        if mixture:  # before the divergence takes the memory of u
            w = api.softmax(u, temperature=kappa)
            p_aux = self._zeros(w @ entries.probs, part)
            mixed = self._mixture(p_aux, part)
            values, student = mixed.values, mixed.student() if self.wanted.student else None
        if beta:
            teacher = self._similarities(self.batch.features[part], exclude)
            others = None if self.own is None else self.own.others[part]
            of_features, slope = membership_divergence(u, teacher, kappa, beta, others, self.wanted.features)
            values = values + of_features
        if mixture and self.wanted.features:
            g = mixed.p_aux(1.0 / kappa) / kappa
            a = torch.mm(g, entries.probs.T, out=teacher if beta else u)
            a -= (g * p_aux).sum(-1, keepdim=True)
            slope = slope.addcmul_(w, a) if beta else w.mul_(a)
        return values, student, None if slope is None else self._zeros(slope @ entries.features, part)

    def _similarities(self, unit: Tensor, exclude: Callable | None) -> Tensor:
        """<., v_i>, (rows, n), -inf for a sample's own entries."""
        similarities = unit @ self.batch.entries.features.T
        if exclude is not None:
            exclude(similarities)
        return similarities

    def _mixture(self, p_aux: Tensor, part: slice) -> MixtureDivergence:
        _, mixture, _, temperature = self.batch.settings
        return MixtureDivergence(self.log_s[part], self.log_t[part], p_aux, mixture, temperature)

    def _zeros(self, values: Tensor, part: slice) -> Tensor:
        return values if self.own is None else self.own.zeros(values, part)
