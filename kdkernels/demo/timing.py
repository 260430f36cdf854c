"""How long a loss takes, forward and backward, on the very logits that a training produces."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from .methods import Method, Setting
from .training import Batch, Criterion, Task


class LossClock:
    """Times a method's loss and its eager twin on the same batches, in turn; keeps how far apart their results are."""

    def __init__(self, task: Task, method: Method, setting: Setting) -> None:
        self.task, self.setting = task, setting
        self.builds = [build for build in (method.build, method.eager) if build is not None]
        self.criteria: list[Criterion] = []
        self.seconds: list[list[float]] = [[] for _ in self.builds]
        self.difference = 0.0

    def __call__(self, student: nn.Module, logits: Tensor, batch: Batch) -> None:
        if not self.criteria:
            # Made anew: timing leaves no trace in a criterion that trains something of its own, nor in the generator.
            with torch.random.fork_rng(devices=[]):
                self.criteria = [build(self.task, self.setting, student) for build in self.builds]
        results = []
        for criterion, seconds in zip(self.criteria, self.seconds, strict=True):
            once(criterion, logits, batch)  # so that neither pays for what the training has driven out of the caches
            result, spent = once(criterion, logits, batch)
            seconds.append(spent)
            results.append(result)
        error = (results[0] - results[-1]).abs() / results[-1].abs().clamp(min=1.0)
        self.difference = max(self.difference, error.max().item())


def once(criterion: Criterion, logits: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The gradient and the loss in one vector, and the seconds that they take."""
    leaf = logits.clone().requires_grad_()
    start = perf_counter()
    loss = criterion(leaf, batch)
    loss.backward()
    seconds = perf_counter() - start
    return torch.cat([leaf.grad.flatten(), loss.detach().view(1)]), seconds


def milliseconds(clocks: Iterable[LossClock], which: int) -> float | None:
    """The median over all clocks of the loss (0) or its eager twin (1), None where there is none."""
    seconds = [second for clock in clocks for second in (clock.seconds[which] if which < len(clock.seconds) else ())]
    return 1e3 * median(seconds) if seconds else None
