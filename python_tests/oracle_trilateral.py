"""The trilateral distances in float64, from the formula alone, and what their rounding is measured by.

S = softmax(student), P = softmax(teacher), G the one-hot label, M = class_mean[label]. An edge is a difference vector;
at the label it is formed from the mass of all other classes where that is small, so that it keeps its digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from oracle import Answer
from tolerance import Scale
from torch import Tensor

SINGLE = 1e-6  # the floor of float32, for what enters squared


class Side(NamedTuple):
    """A distribution of each row (rows, vocab), and 1 minus its entry at the label (rows, 1)."""

    at: Tensor
    rest: Tensor


class Edge(NamedTuple):
    """A difference of two sides, and the sizes whose rounding enters its elements: both (rows, vocab)."""

    vector: Tensor
    size: Tensor


def _softmax(logits: Tensor, hot: Tensor) -> Side:
    probabilities = logits.double().softmax(-1)
    return Side(probabilities, probabilities.masked_fill(hot, 0.0).sum(-1, keepdim=True))


def _edge(a: Side, b: Side, hot: Tensor) -> Edge:
    confident = hot & (a.rest < 0.5)
    vector = torch.where(confident, b.rest - a.rest, a.at - b.at)
    return Edge(vector, torch.where(confident, b.rest + a.rest, a.at + b.at))


def edges(student: Tensor, teacher: Tensor, labels: Tensor, class_mean: Tensor | None) -> tuple[Tensor, list[Edge]]:
    """S, and S - G, P - G, S - P, and with a class mean S - M, M - G."""
    hot = F.one_hot(labels, student.shape[-1]).bool()
    s, p = _softmax(student, hot), _softmax(teacher, hot)
    sides = [(s, None), (p, None), (s, p)]
    if class_mean is not None:
        rows = class_mean.double()[labels]
        mean = Side(rows, 1.0 - rows.gather(-1, labels[:, None]))
        sides += [(s, mean), (mean, None)]
    to_label = lambda a: Edge(torch.where(hot, -a.rest, a.at), torch.where(hot, a.rest, a.at))  # noqa: E731
    return s.at, [to_label(a) if b is None else _edge(a, b, hot) for a, b in sides]


def _over(numerator: Tensor, distance: Tensor) -> Tensor:
    return torch.where(distance == 0, 0.0, numerator / distance)


def trilateral(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    upstream: Tensor,
    class_mean: Tensor | None = None,
    squared: bool = False,
) -> tuple[Answer, Scale]:
    """Distances (rows, 3 or 5), the gradient (rows, vocab) for an upstream of their shape, and both sizes."""
    s, all_edges = edges(student, teacher, labels, class_mean)
    slope, slope_size, distances, sizes = torch.zeros_like(s), torch.zeros_like(s), [], []
    for index, (vector, size) in enumerate(all_edges):
        d, error = (x.norm(dim=-1, keepdim=True) for x in (vector, size))
        distances.append(d.square() if squared else d)
        sizes.append((2 * d + SINGLE * error) * error if squared else error)
        if index in (0, 2, 3):  # those that move with the student
            g = upstream[:, index, None].double()
            slope = slope + g * (2 * vector if squared else _over(vector, d))
            # A direction e / d is off by the roundings of e, of d, and of itself.
            direction = 2 * size if squared else _over(size + vector.abs() * _over(error, d), d)
            slope_size = slope_size + g.abs() * direction
    answer = Answer(torch.cat(distances, -1), _through_softmax(s, slope, labels, -1.0))
    return answer, Scale(torch.cat(sizes, -1), _through_softmax(s, slope_size, labels, 1.0))


def _through_softmax(s: Tensor, slope: Tensor, labels: Tensor, sign: float) -> Tensor:
    """S (w - <S, w>); sign = 1 adds up sizes instead.

    Where most of the mass is at the label, w is taken relative to its entry there, which else drowns all others.
    """
    at = labels[:, None]
    relative = (slope + sign * slope.gather(-1, at)).scatter(-1, at, 0.0)
    relative = torch.where(s.gather(-1, at) > 0.5, relative, slope)
    return s * (relative + sign * (s * relative).sum(-1, keepdim=True))


def eager(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    upstream: Tensor,
    class_mean: Tensor | None = None,
    squared: bool = False,
    device: str = "cpu",
) -> Answer:
    """The same as a PyTorch user would compose it at that dtype, by PyTorch's kernels of that device: half precisions
    are softmaxed in float32."""
    compute = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    given = (student, teacher, labels, upstream, class_mean)
    student, teacher, labels, upstream, class_mean = (x if x is None else x.to(device) for x in given)
    leaf = student.detach().clone().requires_grad_()
    s, p = (logits.to(compute).softmax(-1) for logits in (leaf, teacher))
    g = F.one_hot(labels, student.shape[-1]).to(compute)
    pairs = [(s, g), (p, g), (s, p)]
    if class_mean is not None:
        mean = class_mean.to(compute)[labels]
        pairs += [(s, mean), (mean, g)]
    values = [(a - b).square().sum(-1) if squared else (a - b).norm(dim=-1) for a, b in pairs]
    values = torch.stack(values, -1)
    (values * upstream.to(compute)).sum().backward()
    return Answer(values.detach().cpu().double(), leaf.grad.cpu().double())
