"""What the docstrings promise for a call, in float64: values, gradient, and how far from them is near enough.

The rows come from `oracle` and `oracle_trilateral`; here they are masked, weighted, reduced and scaled. PyTorch's own
error, which the rule of `tolerance` lends, is computed only where a result is not near enough without it.
"""

from __future__ import annotations

import oracle
import oracle_trilateral
import torch
from cases import F16, F32, F64
from fuzz_calls import Call
from fuzz_wanted import Wanted, centred, deeper, depth, times, times_answer
from oracle import Answer
from tolerance import FLOORS, Scale, arithmetic, gradient_limit, scale
from torch import Tensor


class Rows:
    """The rows of a call as the oracle takes them: flat, cut to the vocabulary, zero where they are not read."""

    def __init__(self, call: Call) -> None:
        plain = {k: v.detach().as_subclass(Tensor) for k, v in call.arguments.items() if isinstance(v, Tensor)}
        self.vocab = call.get("vocab_size") or plain["student"].shape[-1]
        self.compute = arithmetic(plain["student"], plain["teacher"])
        flat = {k: v.reshape(-1) for k, v in plain.items() if k in ("labels", "mask", "weight", "alpha")}
        shape = plain["student"].shape[:-1]
        self.counted = torch.ones(shape, dtype=torch.bool).reshape(-1)
        if "mask" in flat:
            self.counted = self.counted & flat["mask"]
        if "labels" in flat:
            self.counted = self.counted & (flat["labels"] != call.get("ignore_index", -100))
        self.weight = (
            flat["weight"].to(self.compute).double()
            if "weight" in flat
            else self.counted.new_ones(len(self.counted), dtype=F64)
        )
        self.read = self.counted & (self.weight != 0)
        rows = self.read[:, None]
        self.student, self.teacher = (
            torch.where(rows, plain[side].reshape(-1, plain[side].shape[-1])[:, : self.vocab], 0.0)
            if plain[side].numel()
            else plain[side].new_zeros(0, self.vocab)
            for side in ("student", "teacher")
        )
        self.z, self.t = centred(self.student), centred(self.teacher)
        self.labels = torch.where(self.read, flat["labels"], 0) if "labels" in flat else None
        alpha = call.get("alpha", 0.5 if self.labels is not None else 1.0)
        self.alpha = flat["alpha"].double() if isinstance(alpha, Tensor) else torch.full_like(self.weight, alpha)
        self.alpha = self.alpha.double().expand(len(self.counted))

    def divisor(self, call: Call) -> float:
        reduction = call.get("reduction", "mean")
        if reduction == "batchmean":
            return max(call.student.shape[0] if call.student.dim() > 1 else 1, 1)
        if reduction == "mean":
            return float(call.get("normalizer") or max(int(self.counted.sum()), 1))
        return 1.0

    @property
    def nan(self) -> Tensor:
        """Rows that are no distribution on a side: NaN, +inf, or -inf throughout."""
        return (self.z + self.t).isnan().any(-1)

    def unsure(self, call: Call) -> Tensor:
        """Rows of an infinite value whose mass on the other side's -inf is so small that the arithmetic may have 0."""
        t, least = float(call.get("temperature", 1.0)), 1e-290 if self.compute is F64 else 1e-30
        masses = [((a / t).softmax(-1) * (b == -torch.inf)).sum(-1) for a, b in ((self.t, self.z), (self.z, self.t))]
        return ((masses[0] > 0) & (masses[0] < least)) | ((masses[1] > 0) & (masses[1] < least))


def composed(call: Call, rows: Rows, of_pytorch: bool) -> Answer:
    """The rows of `divergence` and `distillation` before masks and reduction; in float64 or as PyTorch has them."""
    temperature, loss = float(call.get("temperature", 1.0)), call.arguments["loss"]
    keep = rows.weight * rows.read
    soft = keep * rows.alpha / (1.0 if call.get("tau_squared", True) else temperature**2)
    if of_pytorch:
        answer = oracle.eager(loss, rows.student, rows.teacher, temperature)
    else:
        answer = oracle.divergence(loss, rows.z, rows.t, temperature)
    answer = times_answer(answer, soft)
    if rows.labels is None:
        return answer
    hard = _eager_cross_entropy(rows) if of_pytorch else oracle.cross_entropy(rows.z, rows.labels)
    return answer.plus(times_answer(hard, keep * (1.0 - rows.alpha)))


def _eager_cross_entropy(rows: Rows) -> Answer:
    leaf = rows.student.to(rows.compute).requires_grad_()
    values = torch.nn.functional.cross_entropy(leaf, rows.labels, reduction="none")
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return Answer(values.detach().double(), gradient.double())


def sizes(call: Call, rows: Rows) -> Scale:
    """What rounding is measured by, weighted as the rows are."""
    temperature = float(call.get("temperature", 1.0))
    keep = rows.weight.abs() * rows.read
    soft = keep * rows.alpha / (1.0 if call.get("tau_squared", True) else temperature**2)
    by = torch.maximum(depth(rows.student, temperature), depth(rows.teacher, temperature))
    size = times(deeper(scale(rows.z, rows.t, temperature, call.arguments["loss"]), by), soft)
    if rows.labels is None:
        return size
    hard = scale(rows.z, rows.z)
    hard.gradient[torch.arange(len(rows.labels)), rows.labels] += 1.0  # the 1 that is subtracted there
    by_hard = depth(rows.student, 1.0)
    hard = times(deeper(hard, by_hard), keep * (1.0 - rows.alpha))
    both = size.plus(hard)
    return Scale(both.values, both.gradient, torch.maximum(size.depth, by_hard[:, None]))


def divergence(call: Call, upstream: Tensor, of_pytorch: bool) -> Wanted:
    """For an upstream of the result's shape; values are (rows,) or one total."""
    rows = Rows(call)
    divisor, stored = rows.divisor(call), call.student.dtype
    answer, size = composed(call, rows, False), sizes(call, rows)
    peer = composed(call, rows, True) if of_pytorch else answer
    values, limits, unsure = (
        answer.values / divisor,
        _value_limits(rows, answer, peer, size) / divisor,
        rows.unsure(call),
    )
    unsure |= values.isnan() & (~rows.nan | (rows.alpha == 0) | (rows.alpha == 1))  # 0 times what is not finite
    answer.gradient[rows.nan] = torch.nan
    infinite = values.isinf()
    if call.op == "divergence" and call.arguments["loss"].name == "forward_kl":
        infinite &= False  # it has its gradient there
    if call.get("reduction", "mean") != "none":
        values, limits = values.sum(), limits.nan_to_num(0.0, 0.0).sum()
    each = upstream.detach().double().reshape(-1).expand(len(rows.read)) / divisor
    gradient, peer = (times_answer(x, each) for x in (answer, peer))
    size = Scale(size.values, size.gradient * _sums(rows), size.depth)  # H is a sum
    slopes = gradient_limit(gradient, peer, times(size, each), stored, rows.compute, roundings(stored, rows.compute))
    unsure_values = unsure.any() if values.dim() == 0 else unsure
    return Wanted(values, limits, gradient.gradient, slopes, unsure_values, unsure | infinite, ~rows.read)


def roundings(stored: torch.dtype, compute: torch.dtype) -> int:
    """A stored gradient is rounded, its upstream where that has more digits, and their product; float16 stores none."""
    return 1 if stored is F16 else 3 if compute is F64 and stored is not F64 else 2


def _value_limits(rows: Rows, answer: Answer, peer: Answer, size: Scale) -> Tensor:
    floor = FLOORS[rows.compute]
    lent = (peer.values - answer.values).abs().nan_to_num(0.0, 0.0)
    return lent + floor.value * answer.values.abs() + floor.logarithm * _sums(rows) * size.values


def _sums(rows: Rows) -> float:
    """What float64's sums add to the floors: they are not compensated."""
    return 1.0 + rows.vocab / 64 if rows.compute is F64 else 1.0


def trilateral(call: Call, upstream: Tensor, of_pytorch: bool) -> Wanted:
    rows, stored = Rows(call), call.student.dtype
    table = call.get("class_mean")
    u = torch.where(rows.read[:, None], upstream.detach().reshape(len(rows.read), 5 if table is not None else 3), 0.0)
    rest = (rows.labels, u, table, call.get("squared", False))
    answer, size = oracle_trilateral.trilateral(rows.z, rows.t, *rest)
    peer = oracle_trilateral.eager(rows.student, rows.teacher, *rest) if of_pytorch else answer
    size = deeper(size, torch.maximum(depth(rows.student, 1.0), depth(rows.teacher, 1.0)))
    size.gradient.add_(1e-30 * u.abs().amax(-1, keepdim=True))
    limits = (peer.values - answer.values).abs().nan_to_num(0.0, 0.0) + FLOORS[rows.compute].value * size.values
    if rows.compute is F32 and not call.get("squared", False):
        limits += 4e-23  # the root of the least number: a square below it has no digits left
    keep = rows.read[:, None].double()
    answer = Answer(answer.values * keep, answer.gradient * keep)
    for side, entered in ((rows.z, [0, 2, 3]), (rows.t, [1, 2])):  # a NaN in a class that the formula leaves out
        lost, columns = side.isnan().any(-1), [i for i in entered if i < u.shape[-1]]
        answer.values[lost.nonzero(), columns] = torch.nan
        answer.gradient[lost] = torch.nan
    slopes = gradient_limit(answer, peer, size, stored, rows.compute)
    d = answer.values[:, [0, 2, 3] if table is not None else [0, 2]]  # those that the student moves
    least = 0.0 if rows.compute is F64 else 1e-34 if call.get("squared", False) else 1e-17  # squares underflow below
    vague = ((d > 0) & (d < least)).any(-1)
    return Wanted(answer.values, limits, answer.gradient, slopes, torch.zeros_like(vague), vague, ~rows.read)


def softmax(call: Call, upstream: Tensor, of_pytorch: bool) -> Wanted:
    """As test_numerics has it: half a unit of what is stored, six roundings of the arithmetic in the logarithm, and in
    backward the stored output's own rounding. float64's sums are not compensated: of n terms up to n / 2 roundings."""
    given, log, t = (
        call.student.detach().as_subclass(Tensor),
        call.op == "log_softmax",
        float(call.arguments["temperature"]),
    )
    given = given.reshape(-1, given.shape[-1]) if given.numel() else given.new_zeros(0, given.shape[-1])
    u, log_q = upstream.detach().double().reshape(given.shape), (centred(given) / t).log_softmax(-1)
    q, size = log_q.exp(), torch.where(log_q.isinf(), 0.0, log_q.abs())
    eps, tiny = torch.finfo(given.dtype).eps, torch.finfo(given.dtype).smallest_normal
    roundings = (12 + given.shape[-1] / 2) * eps if given.dtype is F64 else 6 * 2.0**-23
    error = roundings * (1 + size + depth(given, t)[:, None])
    if of_pytorch:
        peer = (given.to(F64 if given.dtype is F64 else F32) / t).log_softmax(-1).double()
        error = error + (peer - log_q).nan_to_num(0.0).abs().expm1()
    values = log_q if log else q
    limits = torch.where(log_q.isinf(), 0.0, 0.5 * eps * values.abs() + error * (1.0 if log else q)) + tiny
    slope, weight = _softmax_slope(u, q, log, 1.0), _softmax_slope(u.abs(), q, log, -1.0)
    stored = eps * (size if log else 1.0) + error
    weight = weight * (2 * stored + eps) + (0.0 if log else q * (u.abs() * q * stored).sum(-1, keepdim=True))
    flushed = (given.shape[-1] + 1) * tiny * (1.0 + u.abs().amax(-1, keepdim=True))
    none = torch.zeros(len(given), dtype=torch.bool)
    return Wanted(values, limits, slope / t, (weight + flushed) / t, none, none, none)


def _softmax_slope(u: Tensor, q: Tensor, log: bool, sign: float) -> Tensor:
    """What an upstream becomes in z / T; with sign -1 the sizes are added up instead."""
    if log:
        return u - sign * q * u.sum(-1, keepdim=True)
    return q * (u - sign * (u * q).sum(-1, keepdim=True))


def wanted(call: Call, upstream: Tensor, of_pytorch: bool = False) -> Wanted:
    """What this call has to give; with PyTorch's own error lent where asked for."""
    rule = softmax if "softmax" in call.op else trilateral if call.op == "trilateral_distances" else divergence
    return rule(call, upstream, of_pytorch)
