"""Supervision complexity over a student's training: what is measured and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import kdkernels as kd
from kdkernels.methods import complexity

from . import networks
from .digits import Digits, Splits
from .protocol import plural
from .training import accuracy, shuffled, step

TARGETS = ("online teacher", "offline teacher", "labels", "random labels")
"""In the order in which the paper finds their complexity to rise."""


@dataclass(frozen=True)
class Protocol:
    """Every number that decides a run.

    Probe, jitter and student were fixed by the condition of the kernel over a training and by the student's accuracy,
    before any complexity was looked at.
    """

    seeds: int = 5
    epochs: int = 30
    """Of the teacher and of the student alike."""
    batch: int = 64
    lr: float = 4e-3
    recorded_every: int = 5
    """Steps from one of the teacher's checkpoints to the next."""
    probe: int = 100
    """Training images that the kernel is computed on, every class in its proportion."""
    temperature: float = 1.0
    """Of the distillation and of the residuals; with T > 1 a teacher's residual would be smaller by its scale alone."""
    jitter: float = 1e-6
    """Of every kernel, relative to its mean diagonal: values are compared across kernels."""
    measured: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30)
    """Epochs of the student after which the complexities are measured."""

    def quick(self) -> Protocol:
        """A run of a few seconds: it exercises everything and measures nothing well."""
        return replace(self, seeds=2, epochs=4, probe=30, measured=(0, 1, 2, 4))

    def describe(self, splits: Splits) -> str:
        """The protocol in words, for the output."""
        train = len(splits.train)
        return (
            f"For each of {plural(self.seeds, 'seed')} a teacher CNN learns from the labels of {train} handwritten "
            f"digits and its weights are recorded every {plural(self.recorded_every, 'step')}, the first ones too. A "
            f"student then learns from its logits alone, at T = {self.temperature:g}, through as many steps, at each "
            "of them from the first checkpoint that is not younger than the student (online distillation). Both see "
            f"random shifts of one pixel. At {plural(len(self.measured), 'moment')} of its training K is the student's "
            f"empirical tangent kernel on {self.probe} of the training images, all 10 outputs, summed in float64, and "
            "the adjusted complexity is that of softmax(targets) - softmax(student) for the teacher of that moment, "
            "the final teacher, one-hot labels and random labels. The jitter is "
            f"{self.jitter:g} of the mean diagonal throughout."
        )


class Moment(NamedTuple):
    """The complexities at one moment of a student's training."""

    epoch: int
    complexity: dict[str, float]
    length: dict[str, float]
    """||residual|| / n: the least complexity that a residual of that length can have."""
    condition: float
    jitter: float
    test: float
    """The student's accuracy in percent."""


@dataclass
class Run:
    """One seed."""

    seed: int
    teacher_test: float
    moments: list[Moment] = field(default_factory=list)


class Trajectory:
    """A teacher's weights at some steps of its training, kept in memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.states = model, {}
        self.record(0)

    def record(self, done: int) -> None:
        self.states[done] = {name: each.clone() for name, each in self.model.state_dict().items()}

    def at(self, done: int) -> nn.Module:
        """The teacher of the first checkpoint at or after that step, ready to be asked."""
        self.model.load_state_dict(self.states[min(recorded for recorded in self.states if recorded >= done)])
        return self.model.eval()


def student() -> nn.Module:
    """The demo's student with eight times the channels, 11 thousand parameters.

    With its own 1370, hardly more than the kernel has rows, the kernel is close to singular; with a hidden layer it
    becomes so when the young teacher's uniform predictions drive the layer's units below zero.
    """
    layers = (nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def run(splits: Splits, protocol: Protocol) -> Iterator[Run]:
    with tqdm(total=protocol.seeds * (2 * protocol.epochs + len(protocol.measured)), dynamic_ncols=True) as bar:
        for seed in range(protocol.seeds):
            yield of_seed(splits, seed, protocol, bar)


def of_seed(splits: Splits, seed: int, protocol: Protocol, bar: tqdm) -> Run:
    bar.set_description(f"seed {seed}: teacher")
    trajectory = train_teacher(splits.train, seed, protocol, bar)
    last = max(trajectory.states)
    result = Run(seed, accuracy(trajectory.at(last), splits.test))
    probe, _ = splits.train.split(protocol.probe, seed)
    with torch.no_grad():
        final = trajectory.model(probe.images)
    random = torch.randint(10, probe.labels.shape, generator=torch.Generator().manual_seed(seed))

    def measure(done: int, model: nn.Module) -> None:
        epoch = protocol.epochs * done // last
        if epoch in protocol.measured:
            bar.set_description(f"seed {seed}: kernel")
            with torch.no_grad():
                present = trajectory.at(done)(probe.images)
            targets = dict(zip(TARGETS, (present, final, probe.labels, random), strict=True))
            result.moments.append(moment(epoch, model, probe.images, targets, splits.test, protocol))
            bar.update()
        bar.set_description(f"seed {seed}: student")

    train_student(trajectory, splits.train, seed, protocol, measure, bar)
    return result


def moment(
    epoch: int, model: nn.Module, images: Tensor, targets: dict[str, Tensor], test: Digits, protocol: Protocol
) -> Moment:
    gram = complexity.empirical_ntk(model, images, dtype=torch.float64, progress=False)
    with torch.no_grad():
        logits = model(images)
    residuals = [
        complexity.residual(logits, target, temperature=protocol.temperature if target.dim() > 1 else 1.0)
        for target in targets.values()
    ]
    found = complexity.supervision_complexity(gram, torch.stack(residuals), jitter=protocol.jitter)
    values = dict(zip(targets, found.value.tolist(), strict=True))
    lengths = {name: float(each.norm()) / len(images) for name, each in zip(targets, residuals, strict=True)}
    return Moment(epoch, values, lengths, found.condition, found.jitter, accuracy(model, test))


def train_teacher(train: Digits, seed: int, protocol: Protocol, bar: tqdm) -> Trajectory:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the weights and of the dropout
        model = networks.teacher()
        trajectory = Trajectory(model)
        total = protocol.epochs * -(-len(train) // protocol.batch)
        optimizer, schedule = learner(model, total, protocol)
        for done, (images, labels) in enumerate(shuffled(train, protocol.batch, protocol.epochs, seed), 1):
            step(optimizer, schedule, F.cross_entropy(model(images), labels))
            if done % protocol.recorded_every == 0 or done == total:
                trajectory.record(done)
            bar.update(done * protocol.epochs % total == 0)
    return trajectory


def train_student(
    trajectory: Trajectory,
    train: Digits,
    seed: int,
    protocol: Protocol,
    observe: Callable[[int, nn.Module], None],
    bar: tqdm,
) -> None:
    """`observe` is shown (steps done, student) before the first step and after each epoch."""
    model = networks.seeded(student, seed)
    observe(0, model)
    total = max(trajectory.states)
    optimizer, schedule = learner(model, total, protocol)
    # Other shuffles and shifts than the teacher's.
    for done, (images, _) in enumerate(shuffled(train, protocol.batch, protocol.epochs, 1000 + seed), 1):
        with torch.no_grad():
            supervision = trajectory.at(done)(images)
        loss = kd.divergence(model(images), supervision, kd.ForwardKL(), temperature=protocol.temperature)
        step(optimizer, schedule, loss)
        if done * protocol.epochs % total == 0:
            bar.update()
            observe(done, model)


def learner(model: nn.Module, steps: int, protocol: Protocol) -> tuple[AdamW, CosineAnnealingLR]:
    optimizer = AdamW(model.parameters(), protocol.lr)
    return optimizer, CosineAnnealingLR(optimizer, steps)
