"""The same computations in plain PyTorch, as a competent user writes them; torch.compile gets these same functions.

Each takes (student, teacher, labels) and returns what the kdkernels call of the case returns. ``dtype=torch.float32``
lets bfloat16 logits be normalised in float32 without a copy of them; for float32 logits it does nothing. Mixtures are
formed from probabilities: measured on a CPU, that takes as long as ``logaddexp`` and 0.7 of the time of
``logsumexp(stack(...))`` in eager mode, and half the time of ``logaddexp`` compiled. (TRL's own function, a rival where
it is installed, is of the stacked kind.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .cases import ALPHA, TEMPERATURES, Case

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


def _distillation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    temperature = TEMPERATURES["distillation"]
    log_q, log_p = _log_probabilities(student, teacher, temperature)
    soft = temperature**2 * _kl_div(log_q, log_p)
    return ALPHA * soft + (1.0 - ALPHA) * F.cross_entropy(student.float(), labels)


def _softmax(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.softmax(student / TEMPERATURES["softmax"], -1)


def _definition(student: Tensor, teacher: Tensor, labels: Tensor, loss: kd.Loss) -> Tensor:
    """What a loss without a formula here gets: its own textbook definition."""
    return loss.definition(*_log_probabilities(student, teacher)).mean()


def formula(case: Case) -> Formula:
    plain = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "total_variation": _total_variation,
        "distillation": _distillation,
        "softmax": _softmax,
    }
    with_parameter = {
        "jensen_shannon": (_jensen_shannon, "beta"),
        "skew_kl": (_skew_kl, "alpha"),
        "skew_reverse_kl": (_skew_reverse_kl, "alpha"),
    }
    if case.op in plain:
        return plain[case.op]
    loss = kd.LOSSES[case.op]()
    if case.op in with_parameter:
        function, name = with_parameter[case.op]
        return partial(function, **{name: getattr(loss, name)})
    return partial(_definition, loss=loss)
