"""The functions as nn.Modules, for trainers that want a criterion object."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import api, checks
from .losses import ForwardKL, Loss


class _Criterion(nn.Module):
    """Holds a loss and the keywords of its function; what varies by batch is given at the call."""

    def __init__(self, loss: Loss, **options: Any) -> None:
        super().__init__()
        checks.loss(loss)
        checks.temperature(options["temperature"])
        checks.reduction(options["reduction"], None)
        self.loss = loss
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join([repr(self.loss), *(f"{name}={value!r}" for name, value in self.options.items())])


class DivergenceLoss(_Criterion):
    """`kdkernels.divergence` as a module: ``criterion(student, teacher, mask=..., weight=..., normalizer=...)``.

    Equivalent to calling the function with the keywords given here; arguments, conventions, errors and sources are
    the function's.
    """

    def __init__(
        self,
        loss: Loss = ForwardKL(),  # noqa: B008 - frozen
        *,
        temperature: float = 1.0,
        tau_squared: bool = True,
        reduction: str = "mean",
        vocab_size: int | None = None,
        inplace: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            loss,
            temperature=temperature,
            tau_squared=tau_squared,
            reduction=reduction,
            vocab_size=vocab_size,
            inplace=inplace,
            backend=backend,
        )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return api.divergence(
            student, teacher, self.loss, mask=mask, weight=weight, normalizer=normalizer, **self.options
        )


class DistillationLoss(_Criterion):
    """`kdkernels.distillation` as a module: ``criterion(student, teacher, labels, alpha=..., mask=...)``.

    Equivalent to calling the function with the keywords given here; an ``alpha`` given at the call (one per row, say)
    replaces the module's. Arguments, conventions, errors and sources are the function's.
    """

    def __init__(
        self,
        loss: Loss = ForwardKL(),  # noqa: B008 - frozen
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        tau_squared: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
        vocab_size: int | None = None,
        inplace: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            loss,
            temperature=temperature,
            tau_squared=tau_squared,
            ignore_index=ignore_index,
            reduction=reduction,
            vocab_size=vocab_size,
            inplace=inplace,
            backend=backend,
        )
        self.alpha = alpha

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha!r}"

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        *,
        alpha: float | Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        share = self.alpha if alpha is None else alpha
        return api.distillation(
            student, teacher, labels, self.loss, alpha=share, mask=mask, weight=weight, normalizer=normalizer,
            **self.options,
        )  # fmt: skip
