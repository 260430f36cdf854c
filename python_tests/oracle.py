"""The answers in float64, written from the formulas alone; tolerance.py says how far from them is near enough.

Nothing here calls a loss of kdkernels: classes are looked up by name and asked for their parameter only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd


@dataclass(frozen=True)
class Answer:
    """One value per row (rows,), the gradient (rows, vocab) of their sum, and what of it float32 cannot decide."""

    values: Tensor
    gradient: Tensor
    slack: Tensor | float = 0.0

    def times(self, factor: Tensor | float) -> Answer:
        """Every row multiplied by its factor (rows,) or by one number."""
        column = factor.reshape(-1, 1) if isinstance(factor, Tensor) else factor
        return Answer(self.values * factor, self.gradient * column, self.slack * column)

    def plus(self, other: Answer) -> Answer:
        return Answer(self.values + other.values, self.gradient + other.gradient, self.slack + other.slack)


def times_log(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """a log(a / b) with 0 log 0 = 0; +inf where a > 0 = b."""
    return torch.where(a == 0, 0.0, a * (log_a - log_b))


def _forward_kl(q, p, log_q, log_p, _):
    return times_log(p, log_p, log_q), -p


def _reverse_kl(q, p, log_q, log_p, _):
    f = times_log(q, log_q, log_p)
    return f, f + q


def _log_mixture(share, log_a, log_b):
    """log(share a + (1 - share) b), finite also where a or b is so small that its share underflows."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _jensen_shannon(q, p, log_q, log_p, beta):
    log_m = _log_mixture(beta, log_p, log_q)
    student = times_log(q, log_q, log_m)
    return beta * times_log(p, log_p, log_m) + (1 - beta) * student, (1 - beta) * student


def _total_variation(q, p, log_q, log_p, _):
    return (p - q).abs() / 2, q * torch.sign(q - p) / 2


def _skew_kl(q, p, log_q, log_p, alpha):
    m = alpha * p + (1 - alpha) * q
    return times_log(p, log_p, _log_mixture(alpha, log_p, log_q)), torch.where(m == 0, 0.0, -(1 - alpha) * p * q / m)


def _skew_reverse_kl(q, p, log_q, log_p, alpha):
    m = alpha * q + (1 - alpha) * p
    f = times_log(q, log_q, _log_mixture(alpha, log_q, log_p))
    return f, f + torch.where(m == 0, 0.0, q - alpha * q * q / m)


def _perturbed(q, p, log_q, log_p, coefficients):
    orders, distance = range(1, coefficients.shape[-1] + 1), -torch.expm1(log_q)
    series = sum(coefficients[..., m - 1] * distance**m for m in orders)
    slope = sum(m * coefficients[..., m - 1] * distance ** (m - 1) for m in orders)
    return times_log(p, log_p, log_q) + p * series, -p * (1 + q * slope)


# (f, h = df / d log q) of every loss, from its formula: the value is sum f, the gradient (h - q sum h) / T.
TERMS: dict[str, Callable] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "perturbed": _perturbed,
}

# Instances that the tests use beside the default one: the parameter small, and large; for the perturbed series the
# fewest and the most orders, values in the paper's range [-1, 10] and of both signs. cases.py has those per class.
EXAMPLES: dict[str, tuple[kd.Loss, ...]] = {
    "jensen_shannon": (kd.JensenShannon(beta=0.1), kd.JensenShannon(beta=0.9)),
    "skew_kl": (kd.SkewKL(alpha=0.01), kd.SkewKL(alpha=0.5)),
    "skew_reverse_kl": (kd.SkewReverseKL(alpha=0.01), kd.SkewReverseKL(alpha=0.5)),
    "perturbed": (
        kd.Perturbed(torch.tensor([0.5])),
        kd.Perturbed(torch.tensor([7.0, -0.5, 9.5, -0.2, 4.0])),
        kd.Perturbed(torch.tensor([-1.0, 10.0, 0.3, -0.25, 1.0, -0.125, 3.0, 2.0])),
    ),
}


def parameter(loss: kd.Loss) -> Tensor | float:
    """What a loss's term depends on: a number, or the coefficients (M,) or (vocab, M) in float64."""
    return loss.coefficients.double().cpu() if isinstance(loss, kd.Perturbed) else loss.parameter()


def divergence(loss: kd.Loss, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Answer:
    """T^2 D(softmax(teacher / T), softmax(student / T)) per row, and its gradient in the student logits."""
    log_q, log_p = ((logits.double() / temperature).log_softmax(-1) for logits in (student, teacher))
    q, p = log_q.exp(), log_p.exp()
    f, h = TERMS[loss.name](q, p, log_q, log_p, parameter(loss))
    # ForwardKL: h = -p, so H = -1 exactly, also where q = 0 < p makes the value infinite.
    gradient = q - p if loss.name == "forward_kl" else h - q * h.sum(-1, keepdim=True)
    slack = 0.0
    if loss.name == "total_variation":
        # sign(q - p) hangs on the last digits where q and p agree to them: such columns may go either way.
        undecided = (q - p).abs() < 2e-5 * (q + p)
        mass = torch.where(undecided, q, 0.0)
        slack = temperature * (mass + q * mass.sum(-1, keepdim=True))
    return Answer(temperature**2 * f.sum(-1), temperature * gradient, slack)


def cross_entropy(student: Tensor, labels: Tensor) -> Answer:
    log_q = student.double().log_softmax(-1)
    hot = F.one_hot(labels, student.shape[-1]).double()
    return Answer(-log_q.gather(-1, labels[:, None])[:, 0], log_q.exp() - hot)


def distillation(
    loss: kd.Loss, student: Tensor, teacher: Tensor, labels: Tensor, alpha: Tensor | float, temperature: float = 1.0
) -> Answer:
    soft = divergence(loss, student, teacher, temperature).times(alpha)
    return soft.plus(cross_entropy(student, labels).times(1 - alpha))


def eager(
    loss: kd.Loss,
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    device: str = "cpu",
) -> Answer:
    """The same as a PyTorch user would compose it at that dtype: half precisions are softmaxed in float32.

    By PyTorch's kernels of that device: on a GPU they round otherwise than on a CPU.
    """
    compute = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher, labels, alpha = (
        x.to(device) if isinstance(x, Tensor) else x for x in (student, teacher, labels, alpha)
    )
    leaf = student.detach().clone().requires_grad_()
    log_q, log_p = ((logits.to(compute) / temperature).log_softmax(-1) for logits in (leaf, teacher))
    values = temperature**2 * _composed(loss, log_q, log_p).sum(-1)
    if labels is not None:
        values = alpha * values + (1 - alpha) * F.cross_entropy(leaf.to(compute), labels, reduction="none")
    values.sum().backward()
    return Answer(values.detach().cpu().double(), leaf.grad.cpu().double())


def _composed(loss: kd.Loss, log_q: Tensor, log_p: Tensor) -> Tensor:
    """f (rows, vocab) as a line or two of PyTorch; differentiable, and as wrong as PyTorch's rounding makes it."""
    q, p, weight = log_q.exp(), log_p.exp(), loss.parameter()
    if loss.name == "forward_kl":
        return F.kl_div(log_q, log_p, log_target=True, reduction="none")
    if loss.name == "reverse_kl":
        return F.kl_div(log_p, log_q, log_target=True, reduction="none")
    if loss.name == "total_variation":
        return 0.5 * (q - p).abs()
    if loss.name == "skew_kl":
        return p * (log_p - (weight * p + (1 - weight) * q).log())
    if loss.name == "skew_reverse_kl":
        return q * (log_q - (weight * q + (1 - weight) * p).log())
    if loss.name == "perturbed":
        coefficients = loss.coefficients.to(log_q)
        orders = torch.arange(1, coefficients.shape[-1] + 1).to(log_q)
        series = (coefficients * (1 - q).unsqueeze(-1) ** orders).sum(-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="none") + p * series
    log_m = (weight * p + (1 - weight) * q).log()
    return weight * p * (log_p - log_m) + (1 - weight) * q * (log_q - log_m)
