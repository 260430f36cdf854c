"""The loss with the auxiliary variable, per row: value and gradient in one walk over chunks of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ... import api
from ...backends.reference import accumulation_dtype
from . import arguments
from .bank import InstanceBank
from .graphs import outside_graphs
from .posterior import unit_rows
from .walk import Batch, Settings, Wanted, evaluate


@outside_graphs
def auxiliary_divergence(
    student: Tensor,
    teacher: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    bank: InstanceBank,
    *,
    kappa: float,
    mixture: float,
    beta: float,
    temperature: float,
    index: Tensor | None = None,
) -> Tensor:
    """T^2 KL(t || p_S) + beta KL(p_T(i|x) || p(i|x)) per row, p_S = (1 - mixture) s + mixture p_aux.

    With v, q the bank's features and distributions, h the student's features and ~h the teacher's, equivalent to::

        u, ut = (F.normalize(x) @ v.T / kappa for x in (h, ~h))         # own entries set to -inf in both
        p_S = (1 - mixture) * softmax(student / T) + mixture * (softmax(u) @ q)
        T**2 * F.kl_div(p_S.log(), softmax(teacher / T), reduction="none").sum(-1)
            + beta * F.kl_div(log_softmax(u), log_softmax(ut), log_target=True, reduction="none").sum(-1)

    but the batch is walked in chunks, of 256 rows for 16,384 entries and on: three (chunk x entries) tensors are all of
    that kind there ever is, the similarities of both sides and one more (on a GPU with ``index`` also one of booleans),
    and each chunk leaves its values and its gradients, (B, C) and (B, dim), which backward scales. Under torch.compile
    the graph breaks here, of which a warning tells once, with the reason; it cannot be exported or traced.

    Args:
        student: logits (B, C), float32, float16, bfloat16 or float64.
        teacher: logits (B, C); dtype may differ; must not require grad.
        student_features: (B, dim) in the dimension of the teacher's, any floating dtype and norm: normalised inside.
        teacher_features: (B, dim), likewise; must not require grad.
        bank: not empty, on the device of the rest; a constant.
        kappa: > 0, a number; p(i|x) = softmax_i(<h^, v_i> / kappa) for unit features: the posterior of equally likely
            von Mises-Fisher densities of concentration 1 / kappa around the entries.
        mixture: in [0, 1]; 0 is ordinary distillation, to the bit `kdkernels.divergence`'s; 1 the bank's word alone.
        beta: >= 0, the weight of the second term.
        temperature: T > 0, of the logits.
        index: (B,) int64, the samples' numbers: entries of the same number are left out of a row. None: all enter.

    Returns:
        (B,) float32 (float64 where one of the four tensors is), in nats times T^2; gradients for student and
        student_features in their dtypes.

    Conventions: ``0 log 0 = 0``. Where all entries of a row are its own, p_aux = 0 and there is no second term: the
    row gains -T^2 log(1 - mixture), +inf for mixture = 1, and sends no gradient to its features. A class that no entry
    knows leaves the value finite for mixture < 1. A feature of zeros (no entry above 1e-30) is similar to nothing (0)
    and gets no gradient; an infinite value has a finite gradient without a meaning. Double backward raises.

    Raises:
        TypeError, ValueError: an argument breaks a rule above.
        RuntimeError: the bank is empty; a second derivative was asked for.

    Source: ours, see the package; for mixture = 0, beta = 0 Hinton et al., 2015.
    """
    settings = Settings(kappa, mixture, beta, temperature)
    check(student, teacher, teacher_features, bank, settings, index)
    arguments.rows("student_features", student_features, bank.dim, bank.features.device, len(student))
    return reduced(student, teacher, student_features, teacher_features, bank, settings, index, "none")


def check(student, teacher, teacher_features, bank, settings: Settings, index) -> None:
    """Everything but the student's features and whether the bank is empty."""
    arguments.bank(bank, InstanceBank)
    arguments.settings(settings)
    arguments.batch(student, teacher, bank.num_classes)
    device, count = bank.features.device, len(student)
    arguments.on_device("student", student, device)
    arguments.rows("teacher_features", teacher_features, bank.dim, device, count)
    arguments.constant("teacher_features", teacher_features)
    if index is not None:
        arguments.index(index, count, device)


def reduced(student, teacher, student_features, teacher_features, bank, settings, index, reduction: str) -> Tensor:
    """The loss of a batch that has been checked. Without a mixture its first term is left to the fused operator."""
    compute, plain = accumulation_dtype(student, teacher, student_features, teacher_features), None
    if settings.mixture == 0:
        plain = api.divergence(student, teacher, temperature=settings.temperature, reduction=reduction).to(compute)
        if settings.beta == 0:
            return plain
    if len(student):
        arguments.filled(len(bank))
        features, _ = unit_rows(teacher_features.to(compute))
        batch = Batch(teacher.to(compute), features, bank.entries(compute), index, settings)
        values = _rows(student, student_features, batch)
    else:  # a process without samples; the bank, too, may hold none
        values = (student.sum(-1) + student_features.sum(-1)).to(compute)
    if reduction != "none":
        values = values.sum() / max(len(student), 1) if reduction == "mean" else values.sum()
    return values if plain is None else plain + values


def _rows(student: Tensor, features: Tensor, batch: Batch) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):  # it would round the similarities to bfloat16
        if torch.is_grad_enabled() and (student.requires_grad or features.requires_grad):
            return _Auxiliary.apply(student, features, batch)[0]
        return evaluate(student, features, batch, Wanted(False, False))[0]


class _Auxiliary(Function):
    """(values, gradient in the logits, gradient in the features); the last two are backward's, and nobody else's."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, features: Tensor, batch: Batch) -> tuple[Tensor | None, ...]:
        values, *gradients = evaluate(student, features, batch, Wanted(*ctx.needs_input_grad[:2]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = student.dtype, features.dtype
        return values, *gradients

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple:
        gradients = ctx.saved_tensors  # first: over a graph that was freed this raises autograd's own message
        if upstream is None:
            return None, None, None
        return *(_scaled(each, upstream, dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True)), None


def _scaled(gradient: Tensor | None, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
    """In float32 until the upstream gradient is in it: float16 may hold the product only."""
    if gradient is None:
        return None
    with torch.no_grad():
        scaled = (gradient * upstream.unsqueeze(-1)).to(dtype)
    return _Once.apply(scaled, gradient) if torch.is_grad_enabled() else scaled


class _Once(Function):
    """The identity on a gradient, tied to the graph, so that its own derivative raises instead of being left out."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        raise RuntimeError("kdkernels: the second derivative of auxiliary_divergence is not implemented")
