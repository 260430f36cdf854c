"""Training the controller beside the student: a step of it for every k steps of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import api, checks
from ...losses import Loss
from . import arguments
from .student import Call
from .unroll import FORWARD_KL, Settings, unrolled


class BilevelStep:
    """Distillation with one learnt alpha per row, and the step that learns it, for any training loop::

        bilevel.step((images, teacher_logits, labels), validation)
        logits = student(images)
        loss = bilevel.loss(logits, teacher_logits, labels)

    The outer problem is min over the controller of the validation cross-entropy at theta', the inner one a step of
    the student, theta' = theta - inner_lr grad J_train(theta; alpha): `hypergradient` gives dJ_val/dalpha, and the
    chain through the controller is PyTorch's. The student trains as it would without, by its own optimizer.

    alpha becomes what lowers the validation cross-entropy, which is not always a measure of how far the teacher can be
    trusted: a student that is overconfident on few samples may be given more of a soft teacher, right or wrong.

    Args:
        student: the module that is trained (not its DistributedDataParallel). `step` leaves its parameters, ``.grad``,
            buffers and mode, and torch's random state, as they were.
        ratio: the controller, ``ratio(student logits, teacher logits, labels) -> alpha``, one value in [0, 1] per row:
            `FusionRatio`, or a module of one's own. In several processes wrap it in DistributedDataParallel, which
            averages its gradient.
        optimizer: an optimizer over parameters of ratio, and of nothing else.
        inner_lr: learning rate of the inner step of plain gradient descent: the student's own where it trains so;
            beside an adaptive optimizer one that makes steps of about that length. The attribute may be changed later.
        temperature: T > 0 of the divergence.
        every: the controller is updated in each `every`-th call of `step`.
        loss: the divergence, a loss of this package.
        call: (module, inputs) -> logits, as for `hypergradient`.

    Raises: TypeError, ValueError, RuntimeError as `hypergradient` and `kdkernels.distillation` do.

    Source: equations 1-5 of Hu et al., ICLR 2024 (arXiv 2312.15112). The algorithm is ours; see `hypergradient`.
    """

    def __init__(
        self,
        student: nn.Module,
        ratio: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        inner_lr: float,
        temperature: float,
        every: int = 1,
        loss: Loss = FORWARD_KL,
        call: Call | None = None,
    ) -> None:
        arguments.student(student)
        arguments.controller(ratio, optimizer)
        arguments.learning_rate(inner_lr)
        checks.temperature(temperature)
        arguments.at_least_one("every", every)
        checks.loss(loss)
        self.student, self.ratio, self.optimizer = student, ratio, optimizer
        self.inner_lr, self.temperature, self.every = inner_lr, temperature, every
        self.divergence, self.call = loss, call
        self.calls = 0
        """How often `step` was called."""

    def step(
        self,
        train: tuple[Any, Tensor, Tensor],
        validation: tuple[Any, Tensor] | Callable[[], tuple[Any, Tensor]],
    ) -> bool:
        """Update the controller if it is due; whether it was.

        Args:
            train: (inputs, teacher logits, labels), the batch that the student is about to train on.
            validation: (inputs, labels), the student's inputs and int64 class labels of samples that it does not train
                on; or a function without arguments that gives them and is called when due only.

        Raises: ValueError where validation is neither, in every call, due or not; others as `hypergradient`.
        """
        if not callable(validation):
            arguments.batch("validation", validation, ("inputs", "labels"))
        self.calls += 1
        if self.calls % self.every:
            return False
        settings = Settings(self.inner_lr, self.temperature, self.divergence, self.call)
        batch = validation() if callable(validation) else validation
        alpha, gradient = unrolled(self.student, self.ratio, train, batch, settings)
        arguments.learnable(alpha)
        self.optimizer.zero_grad()
        alpha.backward(gradient)
        self.optimizer.step()
        return True

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Mean of alpha T^2 D + (1 - alpha) CE over the counted rows: `kdkernels.distillation` at the present alpha.

        Logits (..., vocab) and labels (...); alpha is a constant of it, so that no gradient reaches the controller.
        """
        with torch.no_grad():
            alpha = self.ratio(student.detach(), teacher, labels)
        arguments.alpha(alpha, student)
        alpha = alpha.detach()  # a view of a parameter requires grad, made under no_grad or not
        return api.distillation(student, teacher, labels, self.divergence, alpha=alpha, temperature=self.temperature)

    def state_dict(self) -> dict[str, Any]:
        """Counter, controller and its optimizer: with the student's own state, a run goes on as if not interrupted."""
        return {
            "calls": self.calls,
            "ratio": self.ratio.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ratio.load_state_dict(state["ratio"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.calls = state["calls"]
