"""The same computations in plain PyTorch, as a competent user writes them; torch.compile gets these same functions.

Each takes (student, teacher, labels) and returns what the kdkernels call of the case returns. ``dtype=torch.float32``
lets bfloat16 logits be normalised in float32 without a copy of them; for float32 logits it does nothing. Mixtures are
formed from probabilities: measured on a CPU, that takes as long as ``logaddexp`` and 0.7 of the time of
``logsumexp(stack(...))`` in eager mode, and half the time of ``logaddexp`` compiled. (TRL's own function, a rival where
it is installed, is of the stacked kind.) The perturbed series goes by Horner's rule, in less time than by powers; a
one-hot row is a comparison, which takes less than ``F.one_hot`` and, unlike ``scatter_``, vanishes when compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from . import auxiliary
from .cases import ALPHA, OPERATIONS, Case, Inputs, loss_of

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]

_kl_div = partial(F.kl_div, reduction="batchmean", log_target=True)  # kl_div(input, target) = KL(target || input)


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    return F.log_softmax(student, -1, dtype=torch.float32), F.log_softmax(teacher, -1, dtype=torch.float32)


def _log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b); clamped, or an entry that underflows on both sides would make a NaN."""
    mixture = torch.lerp(log_b.exp(), log_a.exp(), weight)
    return mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()


def _forward_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    return _kl_div(log_q, log_p)


def _reverse_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    return _kl_div(log_p, log_q)


def _jensen_shannon(student: Tensor, teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl_div(log_m, log_p) + (1.0 - beta) * _kl_div(log_m, log_q)


def _total_variation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    q, p = F.softmax(student, -1, dtype=torch.float32), F.softmax(teacher, -1, dtype=torch.float32)
    return 0.5 * (q - p).abs().sum(-1).mean()


def _skew_kl(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    return _kl_div(_log_mixture(log_p, log_q, alpha), log_p)


def _skew_reverse_kl(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    return _kl_div(_log_mixture(log_q, log_p, alpha), log_q)


def _perturbed(student: Tensor, teacher: Tensor, labels: Tensor, coefficients: Tensor) -> Tensor:
    log_q, log_p = _log_probabilities(student, teacher)
    distance = 1.0 - log_q.exp()
    *lower, series = coefficients.unbind(-1)
    for coefficient in reversed(lower):
        series = series * distance + coefficient
    return (log_p.exp() * (log_p - log_q + series * distance)).sum(-1).mean()


def _distillation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    temperature = OPERATIONS["distillation"].temperature
    log_q, log_p = _log_probabilities(student, teacher, temperature)
    soft = temperature**2 * _kl_div(log_q, log_p)
    return ALPHA * soft + (1.0 - ALPHA) * F.cross_entropy(student.float(), labels)


def _softmax(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.softmax(student / OPERATIONS["softmax"].temperature, -1)


def _trilateral(student: Tensor, teacher: Tensor, labels: Tensor, class_mean: Tensor | None) -> Tensor:
    q, p = F.softmax(student, -1, dtype=torch.float32), F.softmax(teacher, -1, dtype=torch.float32)
    one_hot = (labels.unsqueeze(-1) == torch.arange(q.shape[-1], device=q.device)).to(q.dtype)
    edges = [q - one_hot, p - one_hot, q - p]
    if class_mean is not None:
        mean = class_mean[labels]
        edges += [q - mean, mean - one_hot]
    return torch.stack([edge.norm(dim=-1) for edge in edges], -1)


def _definition(student: Tensor, teacher: Tensor, labels: Tensor, loss: kd.Loss) -> Tensor:
    """What a loss without a formula here gets: its own textbook definition."""
    return loss.definition(*_log_probabilities(student, teacher)).mean()


def formula(case: Case, inputs: Inputs) -> Formula:
    if inputs.bank is not None:
        entries = {"features": inputs.bank.features, "probs": inputs.bank.probs, "numbers": inputs.bank.index}
        return partial(auxiliary.composition, **entries)
    plain = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "total_variation": _total_variation,
        "distillation": _distillation,
        "softmax": _softmax,
        "trilateral_distances": partial(_trilateral, class_mean=None),
        "trilateral_class_mean": partial(_trilateral, class_mean=inputs.class_mean),
    }
    with_parameter = {
        "jensen_shannon": (_jensen_shannon, "beta"),
        "skew_kl": (_skew_kl, "alpha"),
        "skew_reverse_kl": (_skew_reverse_kl, "alpha"),
        "perturbed": (_perturbed, "coefficients"),
        "perturbed_per_class": (_perturbed, "coefficients"),
    }
    if case.op in plain:
        return plain[case.op]
    loss = loss_of(case.op, case.vocab, inputs.student.device)
    if case.op in with_parameter:
        function, name = with_parameter[case.op]
        return partial(function, **{name: getattr(loss, name)})
    return partial(_definition, loss=loss)
