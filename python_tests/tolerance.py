"""The rule |kernel - ref64| <= |PyTorch at that dtype - ref64| + floor(dtype), with every floor in one table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from oracle import Answer, parameter, times_log
from torch import Tensor

import kdkernels as kd


@dataclass(frozen=True)
class Floor:
    """What may be added to the error that eager PyTorch makes, by the dtype of the arithmetic and of the gradient."""

    value: float  # of a row's value, relative to itself
    logarithm: float  # of a row's value, relative to what its logarithms weigh (`Scale.values`): one rounding of each
    probability: float  # of a gradient element, relative to T (q + p) (`Scale.gradient`): a few such roundings
    rounding: float  # of a gradient element, relative to itself: half a unit in the last place of what is stored
    smallest: float  # of a gradient element, absolute: half the smallest subnormal, or what flushes to zero
    norm: float  # of the gradient's L2 norm, relative
    bias: float  # of sum |gradient|, relative: rounding errors cancel in it, a systematic error does not


_SINGLE = Floor(1e-6, 2**-24, 3e-6, 2**-24, 1e-37, 2e-6, 1e-6)
FLOORS: dict[torch.dtype, Floor] = {
    torch.float64: Floor(1e-14, 2**-52, 1e-14, 2**-53, 1e-300, 1e-14, 1e-14),
    torch.float32: _SINGLE,
    torch.bfloat16: replace(_SINGLE, rounding=2**-8, norm=2.5e-3, bias=2e-4),
    torch.float16: replace(_SINGLE, rounding=2**-11, smallest=2**-25, norm=3.2e-4, bias=3e-5),
}


def arithmetic(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


@dataclass(frozen=True)
class Scale:
    """What rounding errors are measured by: T^2 (1 + H(q) + H(p)) per row, and T (q + p) per element, in float64."""

    values: Tensor
    gradient: Tensor
    depth: float = 1.0
    """How deep the logarithms are: where (z_max - z) / T is 1e4, they are rounded 1e4 times as coarsely as 1 is."""

    def plus(self, other: Scale) -> Scale:
        return Scale(self.values + other.values, self.gradient + other.gradient)

    def times(self, factor: float) -> Scale:
        return Scale(self.values * factor, self.gradient * factor)

    def deeper(self, depth: float) -> Scale:
        """Below 1e-30 exp flushes to zero in float32, where the oracle still holds something."""
        return Scale(self.values * depth, self.gradient * depth + 1e-30, depth)


def scale(student: Tensor, teacher: Tensor, temperature: float = 1.0, loss: kd.Loss | None = None) -> Scale:
    logs = [(logits.double() / temperature).log_softmax(-1) for logits in (student, teacher)]
    entropies = sum(_entropy(x).sum(-1) for x in logs)
    size = Scale(temperature**2 * (1.0 + entropies), temperature * sum(x.exp() for x in logs))
    return size.plus(_series(*logs, parameter(loss), temperature)) if isinstance(loss, kd.Perturbed) else size


def _entropy(log_p: Tensor) -> Tensor:
    return -times_log(log_p.exp(), log_p, torch.zeros_like(log_p))


def _series(log_q: Tensor, log_p: Tensor, coefficients: Tensor, temperature: float) -> Scale:
    """One rounding of everything in p sum_m eps_m x^m and in its part p q g of the gradient, to first order.

    x = 1 - q is off by x + q (1 - log q) roundings, p by 1 - log p, and the m-th of the powers by m of them; absolute
    values instead of eps, because terms may cancel and their errors do not. The logarithms are left out of the
    gradient's scale, as in T (q + p).
    """
    q, p, x, sizes = log_q.exp(), log_p.exp(), -torch.expm1(log_q), coefficients.abs()
    value, slope, bend = (
        sum(math.perm(m, k) * sizes[..., m - 1] * x ** (m - k) for m in range(max(k, 1), sizes.shape[-1] + 1))
        for k in range(3)
    )
    values = (p + _entropy(log_p)) * value + p * (x + q + _entropy(log_q)) * slope
    gradient = p * q * (slope + (x + q) * bend)
    gradient = gradient + q * gradient.sum(-1, keepdim=True)
    return Scale(temperature**2 * values.sum(-1), temperature * gradient)


def _error(peer: Tensor, ref: Tensor) -> Tensor:
    """What PyTorch gets wrong; where it gets NaN (0 log 0 of an underflow) it lends no tolerance."""
    return (peer - ref).abs().nan_to_num(0.0, 0.0)


def check_values(values: Tensor, answer: Answer, peer: Answer, scale: Scale, dtype: torch.dtype) -> None:
    """|value - ref64| <= |PyTorch - ref64| + floor, row by row; values are in the dtype of the arithmetic."""
    assert values.dtype == dtype
    floor = FLOORS[dtype]
    error = (values.detach().cpu().double() - answer.values).abs()
    limit = _error(peer.values, answer.values) + floor.value * answer.values.abs() + floor.logarithm * scale.values
    worst = int((error - limit).argmax()) if error.numel() else 0
    assert bool((error <= limit).all()), (
        f"row {worst}: value {float(values[worst])!r}, reference {float(answer.values[worst])!r}, "
        f"PyTorch {float(peer.values[worst])!r}, error {float(error[worst]):.3g} > {float(limit[worst]):.3g}"
    )


def check_distances(values: Tensor, answer: Answer, peer: Answer, scale: Scale, dtype: torch.dtype) -> None:
    """|distance - ref64| <= |PyTorch - ref64| + floor for each of (rows, 3 or 5); scale.values has their shape."""
    assert values.dtype == dtype
    error = (values.detach().cpu().double() - answer.values).abs()
    limit = _error(peer.values, answer.values) + FLOORS[dtype].value * scale.values
    row, which = divmod(int((error - limit).argmax()), answer.values.shape[-1])
    assert bool((error <= limit).all()), (
        f"d[{row}, {which}] = {float(values[row, which])!r}, reference {float(answer.values[row, which])!r}, "
        f"PyTorch {float(peer.values[row, which])!r}, off by {float(error[row, which]):.3g} > "
        f"{float(limit[row, which]):.3g}"
    )


def gradient_limit(
    answer: Answer, peer: Answer, scale: Scale, stored: torch.dtype, dtype: torch.dtype, roundings: int = 1
) -> Tensor:
    """How far each element of a gradient that is kept as ``stored`` may be off."""
    floor, ref = FLOORS[stored], answer.gradient
    limit = _error(peer.gradient, ref) + answer.slack
    limit = (
        limit + FLOORS[dtype].probability * scale.gradient + roundings * (floor.rounding * ref.abs() + floor.smallest)
    )
    return limit + (scale.depth - 1.0) * FLOORS[dtype].rounding * ref.abs()


def check_gradient(
    gradient: Tensor, answer: Answer, peer: Answer, scale: Scale, dtype: torch.dtype, roundings: int = 1
) -> None:
    """The rule element by element, then relative L2 and signed bias, for arithmetic in ``dtype``.

    ``roundings``: how often the stored dtype is rounded to (2 where a stored gradient is multiplied by an upstream).
    """
    assert gradient.shape == answer.gradient.shape
    stored, arithmetic_floor = FLOORS[gradient.dtype], FLOORS[dtype]
    got, ref = gradient.detach().cpu().double(), answer.gradient
    error = (got - ref).abs()
    limit = gradient_limit(answer, peer, scale, gradient.dtype, dtype, roundings)
    worst = int((error - limit).argmax())
    row, column = divmod(worst, ref.shape[-1])
    assert bool((error <= limit).all()), (
        f"gradient[{row}, {column}] = {float(got[row, column])!r}, reference {float(ref[row, column])!r}, "
        f"PyTorch {float(peer.gradient[row, column])!r}, error {float(error[row, column]):.3g} > "
        f"{float(limit[row, column]):.3g}; {int((error > limit).sum())} of {ref.numel()} are off"
    )
    size, total = float(ref.norm()), float(ref.abs().sum())
    if size == 0.0:  # vocab 1: there is nothing to be relative to
        return
    undecided = float(torch.as_tensor(answer.slack).sum())
    norm_limit = float(_error(peer.gradient, ref).norm()) / size + roundings * stored.norm + undecided / size
    norm_limit += math.sqrt(ref.numel()) * stored.smallest / size
    norm_limit += (scale.depth - 1.0) * arithmetic_floor.norm * float(scale.gradient.norm()) / scale.depth / size
    assert float(error.norm()) / size <= norm_limit, f"relative L2 {float(error.norm()) / size:.3g} > {norm_limit:.3g}"
    # Rounding to nearest leaves a random walk behind: a few standard deviations of it, and it shrinks with the length.
    walk = 4.0 * roundings * stored.norm * size / total
    bias, peer_bias = (abs(float(((x - ref) * ref.sign()).nansum())) / total for x in (got, peer.gradient))
    walk += (scale.depth - 1.0) * arithmetic_floor.bias * float(scale.gradient.sum()) / scale.depth / total
    bias_limit = peer_bias + stored.bias + walk + (undecided + ref.numel() * stored.smallest) / total
    assert bias <= bias_limit, f"signed bias {bias:.3g} > {bias_limit:.3g}"
