"""The comparison: settings are chosen on the validation images, then every method is measured on the test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from .digits import Splits
from .methods import Method, Setting
from .protocol import Protocol
from .timing import LossClock
from .training import Batch, Task, accuracy, make_task, train_student

TUNING_SEED = 1000
"""The first of the seeds that settings are chosen with; no result comes from them."""


@dataclass
class Outcome:
    """What is known of one method."""

    method: Method
    validation: list[tuple[Setting, float]] = field(default_factory=list)
    """Each setting tried and its mean accuracy, in percent."""
    curves: list[list[float]] = field(default_factory=list)
    """One per seed: test accuracies in percent, the last one being the result."""
    clocks: list[LossClock] = field(default_factory=list)
    findings: list[Any] = field(default_factory=list)
    """One per seed where the method has something to show of its trained criterion."""

    @property
    def setting(self) -> Setting:
        """The best one on the validation images, the first of equals."""
        return max(self.validation, key=lambda tried: tried[1])[0]

    @property
    def results(self) -> list[float]:
        return [curve[-1] for curve in self.curves]


def run(splits: Splits, methods: Sequence[Method], protocol: Protocol) -> tuple[list[Outcome], list[float]]:
    """An outcome per method, and the teachers' test accuracies in percent, one per seed."""
    outcomes = [Outcome(method) for method in methods]
    tries = sum(len(method.grid[: protocol.tries]) for method in methods)
    trainings = protocol.tuning_seeds * (tries + 1) + protocol.seeds * (len(methods) + 1)
    with tqdm(total=trainings, unit="training", dynamic_ncols=True) as bar:
        choose(splits, outcomes, protocol, bar)
        return outcomes, list(measure(splits, outcomes, protocol, bar))


def choose(splits: Splits, outcomes: list[Outcome], protocol: Protocol, bar: tqdm) -> None:
    """Fill in `validation`: every setting with every tuning seed."""
    tasks = []
    for seed in range(TUNING_SEED, TUNING_SEED + protocol.tuning_seeds):
        bar.set_description(f"teacher of seed {seed}")
        tasks.append(make_task(splits, seed, protocol))
        bar.update()
    for outcome in outcomes:
        bar.set_description(f"choosing: {outcome.method.name}")
        for setting in outcome.method.grid[: protocol.tries]:
            outcome.validation.append((setting, mean(validated(tasks, outcome.method, setting, bar))))


def validated(tasks: list[Task], method: Method, setting: Setting, bar: tqdm) -> Iterator[float]:
    for task in tasks:
        student, _ = train_student(task, method.build, setting)
        yield accuracy(student, task.splits.validation)
        bar.update()


def measure(splits: Splits, outcomes: list[Outcome], protocol: Protocol, bar: tqdm) -> Iterator[float]:
    """Fill in `curves` and `clocks` with the settings chosen; gives each seed's teacher's accuracy."""
    for seed in range(protocol.seeds):
        bar.set_description(f"teacher of seed {seed}")
        task = make_task(splits, seed, protocol)
        bar.update()
        for outcome in outcomes:
            bar.set_description(f"seed {seed}: {outcome.method.name}")
            observer = Observer(task, outcome, protocol)
            student, criterion = train_student(task, outcome.method.build, outcome.setting, observer)
            if outcome.method.inspect is not None:
                outcome.findings.append(outcome.method.inspect(task, student, criterion))
            outcome.curves.append(observer.curve)
            outcome.clocks.append(observer.clock)
            bar.update()
        yield accuracy(task.teacher, splits.test)


class Observer:
    """Draws a student's learning curve and times its loss while it learns."""

    def __init__(self, task: Task, outcome: Outcome, protocol: Protocol) -> None:
        self.task, self.every = task, protocol.timed_every
        steps = len(task.batches) // protocol.epochs
        self.points = {steps * epoch for epoch in protocol.evaluated()}
        self.curve: list[float] = []
        self.clock = LossClock(task, outcome.method, outcome.setting)

    def __call__(self, done: int, student: nn.Module, logits: Tensor, batch: Batch) -> None:
        if done in self.points:
            self.curve.append(accuracy(student, self.task.splits.test))
        if done % self.every == 0:
            self.clock(student, logits, batch)
