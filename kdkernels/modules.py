"""The functions as nn.Modules, for trainers that want a criterion object."""

from __future__ import annotations

import torch
from torch import Tensor

from . import api, checks
from .criterion import Criterion, Option
from .losses import ForwardKL, Loss


class DivergenceLoss(Criterion):
    """`kdkernels.divergence` as a module: ``criterion(student, teacher, mask=..., weight=..., normalizer=...)``.

    Equivalent to calling the function with the keywords given here; conventions and sources are the function's. Each of
    them may be read and assigned later: ``criterion.temperature = 4.0``.

    Args:
        loss: a loss of this package, e.g. ``ForwardKL()``, ``JensenShannon(beta=0.5)``. The coefficients of a
            ``Perturbed`` are a buffer: they follow the module to a device (not to a dtype, which would only round
            them) and are in its state_dict.
        temperature: T > 0, a number; divides both sides.
        tau_squared: multiply the result by T^2.
        reduction: "none" (one value per row), "sum", "mean" (over counted rows) or "batchmean".
        vocab_size: only the first entries of both vocabularies enter.
        inplace: let the gradient take the student's buffer; the logits are lost: take metrics of them before the call.
        backend: "auto", or one of ``kd.backends()``; one that was named and cannot run raises.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; here, where it is known here, otherwise at the call.
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
        """The divergence of a batch.

        Args:
            student: logits (..., vocab), float32, float16, bfloat16 or float64.
            teacher: logits of the same leading shape; dtype may differ; must not require grad.
            mask: bool (...), True = counted.
            weight: floating point (...), multiplies each row; must not require grad.
            normalizer: positive number or 0-d tensor that replaces the divisor of reduction "mean".

        Returns:
            0-d, or (...) for reduction "none"; float32 (float64 where an input is), in nats times T^2.

        Raises:
            TypeError, ValueError: an argument breaks a rule above; nothing has been computed or written.
            RuntimeError: the backend that was named cannot run; a second derivative was asked for.
        """
        return api.divergence(
            student, teacher, self.loss, mask=mask, weight=weight, normalizer=normalizer, **self.options
        )


class DistillationLoss(Criterion):
    """`kdkernels.distillation` as a module: ``criterion(student, teacher, labels, alpha=..., mask=...)``.

    Equivalent to calling the function with the keywords given here; conventions and sources are the function's. Each of
    them may be read and assigned later: ``criterion.temperature = 4.0``.

    Args:
        loss: a loss of this package, e.g. ``ForwardKL()``, ``JensenShannon(beta=0.5)``. The coefficients of a
            ``Perturbed`` are a buffer: they follow the module to a device (not to a dtype, which would only round
            them) and are in its state_dict.
        alpha: share of the divergence, a number in [0, 1]; the cross-entropy gets the rest. A tensor, of one value or
            of one per row, becomes a buffer. One that is given at the call replaces it.
        temperature: T > 0, a number; divides both sides of the divergence.
        tau_squared: multiply the divergence by T^2.
        ignore_index: rows of this label count in neither term.
        reduction: "none" (one value per row), "sum", "mean" (over counted rows) or "batchmean".
        vocab_size: only the first entries of both vocabularies enter.
        inplace: let the gradient take the student's buffer; the logits are lost: take metrics of them before the call.
        backend: "auto", or one of ``kd.backends()``; one that was named and cannot run raises.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; here, where it is known here, otherwise at the call.
    """

    ignore_index = Option()

    def __init__(
        self,
        loss: Loss = ForwardKL(),  # noqa: B008 - frozen
        *,
        alpha: float | Tensor = 0.5,
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
        if isinstance(alpha, Tensor):
            checks.alpha(alpha, alpha.unsqueeze(-1))  # against logits of its own shape: those of a batch are to come
            with torch.inference_mode(False):
                self.register_buffer("alpha", alpha.clone())  # the caller's stays as it is, whatever is loaded here
        else:
            checks.alpha(alpha, None)
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
        """The mixture of divergence and cross-entropy of a batch.

        Args:
            student: logits (..., vocab), float32, float16, bfloat16 or float64.
            teacher: logits of the same leading shape; dtype may differ; must not require grad.
            labels: int64 (...), in [0, vocab) or ``ignore_index``.
            alpha: replaces the module's: a number in [0, 1], or one value per row (...); must not require grad.
            mask: bool (...), True = counted.
            weight: floating point (...), multiplies each row; must not require grad.
            normalizer: positive number or 0-d tensor that replaces the divisor of reduction "mean".

        Returns:
            0-d, or (...) for reduction "none"; float32 (float64 where an input is), in nats.

        Raises:
            TypeError, ValueError: an argument breaks a rule above; nothing has been computed or written.
            RuntimeError: the backend that was named cannot run; a second derivative was asked for.
        """
        share = self.alpha if alpha is None else alpha
        return api.distillation(
            student, teacher, labels, self.loss, alpha=share, mask=mask, weight=weight, normalizer=normalizer,
            **self.options,
        )  # fmt: skip
