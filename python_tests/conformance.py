"""What may be handed over in place of a plain tensor, and every argument that takes one, behind the same call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cases import logits
from torch import Tensor
from torch.utils import _pytree as pytree

import kdkernels as kd

ROWS, VOCAB = 9, 11
X, T = logits(ROWS, VOCAB), logits(ROWS, VOCAB, seed=1)
Y = torch.tensor([0, 10, 3, 3, 7, 1, 2, 9, 5])
WEIGHT = torch.linspace(0.25, 1.0, ROWS)
MEANS = logits(VOCAB, VOCAB, seed=2).softmax(-1)
OPS = torch.ops.kdkernels


class Subclass(Tensor):
    """A subclass that is nothing but a tensor."""


class Wrapper(Tensor):
    """A subclass without memory of its own: what it holds is reached through __torch_dispatch__ only."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        wanted = {"dtype": inner.dtype, "device": inner.device, "requires_grad": inner.requires_grad}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **wanted)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        given = pytree.tree_map_only(cls, lambda x: x.inner, (arguments, keywords or {}))
        return pytree.tree_map_only(Tensor, cls, function(*given[0], **given[1]))


def plain(result: Tensor) -> Tensor:
    """Of whatever came out: a tensor that can be compared."""
    result = result.inner if isinstance(result, Wrapper) else result
    return result.detach().as_subclass(Tensor)


def _spread(x: Tensor) -> Tensor:
    buffer = torch.zeros(*x.shape, 2, dtype=x.dtype)
    buffer[..., 0] = x
    return buffer[..., 0]


def _shifted(x: Tensor) -> Tensor:
    buffer = x.new_zeros(x.numel() + 1)
    buffer[1:] = x.reshape(-1)
    return buffer[1:].view(x.shape)


def _conjugate(x: Tensor) -> Tensor:
    """Negated lazily, the public way: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag if x.dtype.is_floating_point else torch._neg_view(-x)


SUPPORTED: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "not contiguous": _spread,
    "at an offset": _shifted,
    "lazily negated": _conjugate,
    "parameter": lambda x: torch.nn.Parameter(x.clone(), requires_grad=False),
    "subclass": lambda x: x.as_subclass(Subclass),
    "wrapper": Wrapper,
}
REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "wrong dtype": lambda x: x.to(torch.complex64),
    "wrong shape": lambda x: torch.stack([x, x]),
    "elsewhere": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
}


class Argument(NamedTuple):
    call: Callable[[Tensor, str], Tensor]
    """(the argument, backend) -> result."""
    good: Tensor
    name: str
    """In messages."""


def _operator(student: Tensor, teacher: Tensor, backend: str, **changes: Any) -> Tensor:
    numbers = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    fields = {"labels": None, "soft_weight": None, "hard_weight": None, "table": None} | changes
    return OPS.divergence(student, teacher, *fields.values(), "forward_kl", None, True, backend, numbers)


def _trilateral(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor, backend: str) -> Tensor:
    return OPS.trilateral(student, teacher, means, labels, False, -100, None, backend)[0]


FUNCTIONS = {
    "student": Argument(lambda v, b: kd.distillation(v, T, Y, temperature=2.0, backend=b), X, "student"),
    "teacher": Argument(lambda v, b: kd.distillation(X, v, Y, temperature=2.0, backend=b), T, "teacher"),
    "labels": Argument(lambda v, b: kd.distillation(X, T, v, backend=b), Y, "labels"),
    "mask": Argument(lambda v, b: kd.divergence(X, T, mask=v, backend=b), Y > 2, "mask"),
    "weight": Argument(lambda v, b: kd.divergence(X, T, weight=v, backend=b), WEIGHT, "weight"),
    "alpha": Argument(lambda v, b: kd.distillation(X, T, Y, alpha=v, backend=b), WEIGHT, "alpha"),
    "normalizer": Argument(lambda v, b: kd.divergence(X, T, normalizer=v, backend=b), torch.tensor(7.0), "normalizer"),
    "logits": Argument(lambda v, b: kd.softmax(v, backend=b), X, "logits"),
    "distances student": Argument(lambda v, b: kd.trilateral_distances(v, T, Y, backend=b), X, "student"),
    "distances teacher": Argument(lambda v, b: kd.trilateral_distances(X, v, Y, backend=b), T, "teacher"),
    "distances labels": Argument(lambda v, b: kd.trilateral_distances(X, T, v, backend=b), Y, "labels"),
    "class_mean": Argument(lambda v, b: kd.trilateral_distances(X, T, Y, v, backend=b), MEANS, "class_mean"),
}
OPERATORS = {
    "student": Argument(lambda v, b: _operator(v, T, b, labels=Y), X, "student"),
    "teacher": Argument(lambda v, b: _operator(X, v, b, labels=Y), T, "teacher"),
    "labels": Argument(lambda v, b: _operator(X, T, b, labels=v), Y, "labels"),
    "soft_weight": Argument(lambda v, b: _operator(X, T, b, soft_weight=v), WEIGHT, "soft_weight"),
    "hard_weight": Argument(lambda v, b: _operator(X, T, b, labels=Y, hard_weight=v), WEIGHT, "hard_weight"),
    "distances student": Argument(lambda v, b: _trilateral(v, T, MEANS, Y, b), X, "student"),
    "distances teacher": Argument(lambda v, b: _trilateral(X, v, MEANS, Y, b), T, "teacher"),
    "distances labels": Argument(lambda v, b: _trilateral(X, T, MEANS, v, b), Y, "labels"),
    "class_mean": Argument(lambda v, b: _trilateral(X, T, v, Y, b), MEANS, "class_mean"),
}
UPSTREAMS = {
    "rows": lambda z, b: kd.divergence(z, T, reduction="none", backend=b),
    "mean": lambda z, b: kd.divergence(z, T, backend=b),
    "distillation": lambda z, b: kd.distillation(z, T, Y, reduction="none", backend=b),
    "softmax": lambda z, b: kd.softmax(z, backend=b),
    "log_softmax": lambda z, b: kd.log_softmax(z, temperature=2.0, backend=b),
    "distances": lambda z, b: kd.trilateral_distances(z, T, Y, MEANS, backend=b),
}
