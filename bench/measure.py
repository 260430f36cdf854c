"""The measurement of one case: every contender side by side in one process, in rounds, on the same tensors.

A machine that others use drifts and stalls. So no contender is timed in one go: in each round every one gets a short
burst of steps (their order turns from round to round), medians are taken over all steps, and a ratio is the median of
the rounds' ratios, whose two sides were milliseconds apart.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from . import memory, oracle
from .cases import Case, Inputs, inputs
from .contenders import COMPILED, STREAM, contender, names, solved
from .step import Step


@dataclass(frozen=True)
class Limits:
    seconds: float = 1.5
    """No round begins later than this, once there are enough."""
    min_rounds: int = 3
    max_rounds: int = 60


QUICK = Limits(seconds=0.3, max_rounds=15)

_BURST_SECONDS = 0.004
_SHARE_OF_SLOWEST = 0.1  # so that a fast contender has more than one sample per round of a slow one
_MAX_BURST = 30


@dataclass
class Entry:
    """One contender in one case: its samples by round (seconds), or why it has none."""

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    refused: str | None = None
    error: float | None = None
    peak_bytes: int | None = None
    burst: int = 1
    prepare: Callable[[], Any] = field(default=lambda: None, repr=False)
    run: Callable[[Any], Any] = field(default=lambda _: None, repr=False)

    @property
    def samples(self) -> list[float]:
        return [sample for burst in self.rounds for sample in burst]

    def ratio_to(self, other: Entry) -> float | None:
        if not self.rounds or not other.rounds:
            return None
        return median(median(mine) / median(its) for mine, its in zip(self.rounds, other.rounds, strict=True))


def measure(case: Case, device: str, limits: Limits) -> list[Entry]:
    torch.compiler.reset()
    tensors = inputs(case, device)
    tasks = {name: solved(name, case) for name in names(case, device)}
    expected = {task: oracle.answer(task, tensors) for task in set(tasks.values())}
    entries = [_entry(name, case, tensors, expected[task], device) for name, task in tasks.items()]
    stream = _stream(case, tensors)
    runners = [entry for entry in (stream, *entries) if not entry.refused]
    gc.collect()
    gc.disable()
    try:
        _run_rounds(runners, device, limits)
    finally:
        gc.enable()
    return [stream, *entries]


def _entry(name: str, case: Case, tensors: Inputs, expected: oracle.Answer, device: str) -> Entry:
    """Checked against the oracle, and its memory measured, before it may be timed."""
    entry = Entry(name)
    try:
        step = Step(case, tensors, contender(name, case, tensors))
        if name == COMPILED or device == "cuda":
            step.outcome()  # compilation is nobody's memory
        (value, gradient), entry.peak_bytes = memory.with_peak(step.outcome, device)
    except Exception as error:  # a rival that cannot run here is a result, not the end of the run
        entry.refused = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return entry
    entry.error = oracle.error(expected, value, gradient)
    if not entry.error <= oracle.bound(case):  # written so that a NaN is refused
        entry.refused = f"disagrees with the oracle: relative error {entry.error:.1e}"
    entry.prepare, entry.run = step.prepare, step.run()
    return entry


def _stream(case: Case, tensors: Inputs) -> Entry:
    """The machine's own two reads and one write, into memory that is already there."""
    if not case.units:
        return Entry(STREAM, refused="no comparison: the time is that of matrix products")
    out = torch.empty_like(tensors.student)
    return Entry(STREAM, run=lambda _: torch.add(tensors.student, tensors.teacher, out=out), peak_bytes=0)


def _run_rounds(entries: list[Entry], device: str, limits: Limits) -> None:
    burst_of = _cuda_burst if device == "cuda" else _cpu_burst
    first = {entry.name: min(burst_of(entry) + burst_of(entry)) for entry in entries}  # warms up, and sets the bursts
    goal = max(_BURST_SECONDS, _SHARE_OF_SLOWEST * max(first.values()))
    for entry in entries:
        entry.burst = min(max(int(goal / first[entry.name]), 1), _MAX_BURST)
    start = time.perf_counter()
    for number in range(limits.max_rounds):
        if number >= limits.min_rounds and time.perf_counter() - start > limits.seconds:
            break
        turn = number % len(entries)
        for entry in entries[turn:] + entries[:turn]:
            entry.rounds.append(burst_of(entry))


def _cpu_burst(entry: Entry) -> list[float]:
    times = []
    for _ in range(entry.burst):
        argument = entry.prepare()
        start = time.perf_counter()
        entry.run(argument)
        times.append(time.perf_counter() - start)
    return times


def _cuda_burst(entry: Entry) -> list[float]:
    """Between events on the stream: the host runs ahead as it does in training, and is timed where it cannot."""
    pairs = []
    for _ in range(entry.burst):
        argument = entry.prepare()
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        entry.run(argument)
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]
