"""The backends: which are there, which one a call gets, and the interface that a kernel backend fills.

The reference backend is plain differentiable PyTorch. The kernel backends (native, triton) are modules with the
functions of `KernelBackend`; they get two-dimensional tensors whose last stride is 1, outputs that are already
allocated, and arguments that `checks` has passed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from . import calls, fallback, native, triton
from .fallback import FallbackWarning
from .onlookers import hides, recorded, traced, transformed


class KernelBackend(Protocol):
    def unavailable(self) -> str | None:
        """Why this backend cannot run in this process, or None where it can."""

    def unsupported(self, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
        """Why this backend cannot take tensors of this device and these dtypes, or None where it can."""

    def divergence(self, student: Tensor, teacher: Tensor, gradient: Tensor | None, call: calls.Divergence) -> Tensor:
        """values_r = soft_scale soft_weight_r D(p_r || q_r) + hard_scale hard_weight_r CE(label_r), (rows,).

        student and teacher are (rows, vocab) logits, labels (rows,) int64, the weights (rows,) in the dtype of the
        arithmetic (float32, or float64 where a logit tensor is); a weight of None is 1, and labels of None drop the
        cross-entropy (which has temperature 1). Where both weights of a row are 0 the row is not read: its value is 0
        and its gradient row is zero. Where one of them is 0, its term adds exactly nothing. A label outside
        [0, vocab) makes its row's value NaN, without an access out of bounds, unless its term's weight is 0.
        `gradient`, in the student's dtype and maybe the student itself, receives d sum(values) / d student. `table`
        is what `Loss.table` gives in the dtype of the arithmetic.
        """

    def softmax(self, logits: Tensor, output: Tensor, call: calls.Softmax) -> None:
        """output = softmax(logits / temperature) or its logarithm, row by row."""

    def softmax_backward(self, upstream: Tensor, output: Tensor, gradient: Tensor, call: calls.Softmax) -> None:
        """gradient = the derivative of `softmax` at `output`, contracted with `upstream`."""

    def scale_rows(self, gradient: Tensor, factor: Tensor) -> None:
        """gradient *= factor in place; a factor of exactly 1 costs no pass over the gradient.

        factor is 0-d or (rows,) and contiguous, float32 or float64.
        """

    def trilateral(
        self,
        student: Tensor,
        teacher: Tensor,
        class_mean: Tensor | None,
        statistics: Tensor | None,
        call: calls.Trilateral,
    ) -> Tensor:
        """The distances (rows, 3), with a class mean (rows, 5), in the dtype of the arithmetic.

        class_mean is (vocab, vocab), its row `label` read for each row. `statistics`, (rows, STATISTICS) in the dtype
        of the arithmetic or None, receives what backward needs: max z, 1 / sum exp(z - max z), the same two of the
        teacher, 1 - S_y, S_y - P_y, S_y - M_y, and the sums over v != y of S S, S (S - P) and S (S - M) (what has M is
        anything without a class mean). csrc/geometry.h says how they are taken without cancellation. Distances
        and statistics of a row whose label is `ignore_index` are 0, and it is not read; those of another label outside
        [0, vocab) are NaN, without an access out of bounds.
        """

    def trilateral_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        class_mean: Tensor | None,
        statistics: Tensor,
        distances: Tensor,
        upstream: Tensor,
        gradient: Tensor,
        call: calls.Trilateral,
    ) -> None:
        """gradient = the derivative of `trilateral` in the student, contracted with `upstream`, in one walk.

        gradient is not the student: the label's logit is read while others write.

        upstream and distances are contiguous, in the dtype of the arithmetic. Rows without a label: as in `trilateral`.
        """


STATISTICS = 10
"""Per row, what `trilateral` leaves for `trilateral_backward`."""

KERNEL_BACKENDS: dict[str, KernelBackend] = {
    "native": cast(KernelBackend, native),
    "triton": cast(KernelBackend, triton),
}
NAMES = ("auto", "reference", *KERNEL_BACKENDS)

# What "auto" tries, by device. Measured on an H200 (bench/results/nvidia-h200-sm-90.md): Triton is the faster
# ones, up to 2.6 times at 128256 columns, but a call of them takes more steps on the host, and up to some 2^23 logits
# nothing else counts: the compiled backend takes 0.5 to 1.1 of their time there.
_PREFERRED = {"cpu": ("native",), "cuda": ("triton", "native")}
_PREFERRED_SMALL = {"cpu": ("native",), "cuda": ("native", "triton")}
SMALL = 1 << 23
"""So many logits at most are few."""

_ENVIRONMENT = os.environ.get("KDKERNELS_BACKEND") or "auto"  # read once: a lookup at every call would show
_TRANSFORMED = "torch.func and forward-mode AD need plain differentiable PyTorch, which is backend='reference'"


class _Choice(threading.local):
    """What `use_backend` chose in this thread. Not a ContextVar: torch.compile cannot look into one."""

    name: str | None = None


_choice = _Choice()


def check_name(name: object, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return cast(str, name)


def backends() -> dict[str, str]:
    """Each backend by name: "available", or why it is not."""
    return {"reference": "available"} | {
        name: backend.unavailable() or "available" for name, backend in KERNEL_BACKENDS.items()
    }


class use_backend:  # noqa: N801 - it is called as a function is
    """Choose the backend of every call in this block (and thread) whose own ``backend`` is "auto"::

        with kd.use_backend("reference"):
            loss = kd.divergence(student, teacher)

    As a decorator, of every call in the function. By itself, outside of a ``with``, it chooses nothing. The choice is
    the thread's: do not await or yield inside, where other tasks of the thread would be given it.

    A name that cannot run raises at the call; there is no silent fall-back. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "name")
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(_choice.name)
        _choice.name = self.name

    def __exit__(self, *_: object) -> None:
        _choice.name = self._before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*arguments: Any, **keywords: Any) -> Any:
            with type(self)(self.name):  # one of its own: the function may run in several threads
                return function(*arguments, **keywords)

        return inside


def resolve(requested: str, device: torch.device, dtypes: tuple[torch.dtype, ...], logits: Tensor | None = None) -> str:
    """The backend that a call gets: its own choice, then `use_backend`, then KDKERNELS_BACKEND, then the fastest."""
    name = check_name(requested, "backend")
    if name == "auto":
        name = _choice.name or check_name(_ENVIRONMENT, "KDKERNELS_BACKEND")
    if name == "auto":
        return _fastest(device, dtypes, logits)
    if name != "reference":
        reason = _obstacle(name, device, dtypes)
        if reason:
            raise RuntimeError(f"backend {name!r} was asked for and cannot run: {reason}")
    return name


def _fastest(device: torch.device, dtypes: tuple[torch.dtype, ...], logits: Tensor | None) -> str:
    order = _PREFERRED
    # A graph is for more than one size.
    if device.type == "cuda" and logits is not None and not traced(logits) and logits.numel() <= SMALL:
        order = _PREFERRED_SMALL
    for name in order.get(device.type, ("triton",)):
        if not _obstacle(name, device, dtypes):
            return name
    if device.type != "meta":  # on meta nothing is computed
        fallback.say(automatic(device, dtypes)[1])
    return "reference"


def automatic(device: torch.device, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> tuple[str, str]:
    """What "auto" picks for tensors of a device and dtypes, and, where that is the reference, why no kernel runs."""
    if transformed():
        return "reference", _TRANSFORMED
    reasons = []
    for name in _PREFERRED.get(device.type, ("triton",)):
        reason = _obstacle(name, device, dtypes)
        if not reason:
            return name, ""
        reasons.append(f"{name}: {reason}")
    return "reference", "; ".join(reasons)


def _obstacle(name: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if transformed():
        return _TRANSFORMED
    return _reason(name, device, dtypes)


@fallback.outside_graphs
def _reason(name: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    backend = KERNEL_BACKENDS[name]
    return backend.unavailable() or backend.unsupported(device, dtypes)


__all__ = [
    "KERNEL_BACKENDS",
    "NAMES",
    "SMALL",
    "FallbackWarning",
    "STATISTICS",
    "KernelBackend",
    "automatic",
    "backends",
    "hides",
    "recorded",
    "resolve",
    "traced",
    "transformed",
    "use_backend",
]
