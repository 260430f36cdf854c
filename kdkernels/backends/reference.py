"""The reference: every operation from its textbook definition in plain, differentiable PyTorch.

The oracle of the tests and what runs on devices without a kernel. It shares no code with the kernels' terms: a loss's
`definition` works on log-probabilities, and the gradient is PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import Loss
from . import calls


def divergence(student: Tensor, teacher: Tensor, call: calls.Divergence, loss: Loss) -> Tensor:
    """The row values of `KernelBackend.divergence`, (rows,), differentiable in the student."""
    compute = accumulation_dtype(student, teacher)
    student, teacher = student.to(compute), teacher.to(compute)
    soft_factor = _factor(call.soft_weight, call.soft_scale, student)
    hard_factor = _factor(call.hard_weight, call.hard_scale, student)
    values = _counted(soft_factor, lambda z, t: _divergence(z, t, loss, call.temperature), student, teacher)
    if call.labels is not None:
        values = values + _counted(hard_factor, lambda z: _cross_entropy(z, call.labels), student)
    return values


def _counted(factor: Tensor, term: Callable[..., Tensor], *logits: Tensor) -> Tensor:
    """factor * term(*logits) per row; where the factor is 0, exactly 0 whatever the logits hold.

    The logits of such rows are replaced before anything is computed: 0 times a NaN would still be a NaN.
    """
    counted = factor != 0
    values = term(*(torch.where(counted.unsqueeze(-1), each, 0.0) for each in logits))
    return torch.where(counted, factor * torch.where(counted, values, 0.0), 0.0)


def _divergence(student: Tensor, teacher: Tensor, loss: Loss, temperature: float) -> Tensor:
    log_q, log_p = (F.log_softmax(_tempered(logits, temperature), dim=-1) for logits in (student, teacher))
    return loss.definition(log_q, log_p)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """(logits - max) / T: what log softmax(logits / T) is taken of, finite where logits / T would overflow.

    Shifting a row changes neither the result nor any derivative, so the maximum is a constant. Halves are subtracted,
    and T is halved: the difference of two finite logits may itself overflow, though not when it is divided by T > 1.
    """
    half = 0.5 * logits
    return (half - half.detach().amax(-1, keepdim=True)) / (0.5 * temperature)


def trilateral(student: Tensor, teacher: Tensor, class_mean: Tensor | None, call: calls.Trilateral) -> Tensor:
    """The distances of `KernelBackend.trilateral`, (rows, 3) or (rows, 5), differentiable in the student."""
    compute = accumulation_dtype(student, teacher)
    vocab = student.shape[-1]
    labels = call.labels
    counted, inside = labels != call.ignore_index, (labels >= 0) & (labels < vocab)
    label = torch.where(inside, labels, 0)
    s, p = (F.softmax(torch.where(counted.unsqueeze(-1), x.to(compute), 0.0), dim=-1) for x in (student, teacher))
    g = (label.unsqueeze(-1) == torch.arange(vocab, device=label.device)).to(compute)  # one_hot would read values
    edges = [s - g, p - g, s - p]
    if class_mean is not None:
        mean = class_mean.to(compute)[label]
        edges += [s - mean, mean - g]
    if call.squared:
        distances = torch.stack([edge.square().sum(-1) for edge in edges], dim=-1)
    else:
        distances = torch.stack([_length(edge) for edge in edges], dim=-1)
    distances = distances * torch.where(inside | ~counted, 1.0, torch.nan).to(compute).unsqueeze(-1)  # gradients too
    return torch.where(counted.unsqueeze(-1), distances, 0.0)


def _length(edge: Tensor) -> Tensor:
    """|edge| over the last dimension; where it is 0, every derivative of every order is 0 too.

    Such edges are replaced before the norm is taken: a `where` after it would leave NaN in its second derivative.
    """
    zero = torch.linalg.vector_norm(edge.detach(), dim=-1) == 0
    length = torch.linalg.vector_norm(torch.where(zero.unsqueeze(-1), 1.0, edge), dim=-1)
    return torch.where(zero, 0.0, length)


def softmax(logits: Tensor, call: calls.Softmax) -> Tensor:
    """softmax(logits / temperature) or its logarithm over the last dimension, in the dtype of the logits."""
    scaled = _tempered(logits.to(accumulation_dtype(logits)), call.temperature)
    return (F.log_softmax(scaled, dim=-1) if call.log else F.softmax(scaled, dim=-1)).to(logits.dtype)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any tensor is, else float32: the dtype of arithmetic and of values."""
    for tensor in tensors:
        if tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def _factor(weight: Tensor | None, scale: float, student: Tensor) -> Tensor:
    if weight is None:
        return student.new_full(student.shape[:-1], scale)
    return weight.to(student.dtype) * scale


def _cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(student)[label] per row at temperature 1; NaN where the label is no class."""
    vocab = student.shape[-1]
    inside = (labels >= 0) & (labels < vocab)
    chosen = F.log_softmax(student, dim=-1).gather(-1, labels.clamp(0, vocab - 1).unsqueeze(-1)).squeeze(-1)
    return -chosen * torch.where(inside, 1.0, torch.nan).to(chosen.dtype)  # the gradient is NaN too
