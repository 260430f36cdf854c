"""Where the decisions of a fuzz case come from: a seed, a recorded list (replayed, shrunk), or hypothesis.

A decision is an integer from 0 on, and 0 is the plainest: a case is the list of its decisions, and a failing case
shrinks by making them smaller. The strategies (`fuzz_calls`, `fuzz_illegal`) know nothing else, so that hypothesis in
CI and the bulk driver run the very same cases.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Source = Callable[[int], int]


class Choices:
    """Decisions taken from a source, and the list of them."""

    def __init__(self, source: Source) -> None:
        self._source, self.taken = source, []

    def below(self, count: int) -> int:
        """An integer of [0, count)."""
        value = self._source(count)
        self.taken.append(value)
        return value

    def pick(self, options: Sequence[T]) -> T:
        """One of them, the plainest first."""
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent


def seeded(seed: int | str) -> Choices:
    generator = random.Random(seed)
    return Choices(lambda count: int(generator.random() * count))


def replayed(taken: Sequence[int]) -> Choices:
    """The decisions of a list; where it ends, and where it goes beyond what there is, the plainest and the last."""
    rest = iter(taken)
    return Choices(lambda count: min(next(rest, 0), count - 1))


def shrink(taken: list[int], fails: Callable[[list[int]], bool], seconds: float = 20.0) -> list[int]:
    """A list no longer and with no larger decisions that fails still: ends are cut, then each decision is lowered."""
    end = time.monotonic() + seconds

    def still(candidate: list[int]) -> bool:
        return time.monotonic() < end and fails(candidate)

    length = len(taken)
    while length > 1:  # what is cut off becomes 0
        length //= 2
        while len(taken) > length and still(taken[:-length]):
            taken = taken[:-length]
    changed = True
    while changed and time.monotonic() < end:
        changed = False
        for index, value in enumerate(taken):
            for smaller in sorted({0, value // 2, value - 1}):
                if 0 <= smaller < value and still(candidate := [*taken[:index], smaller, *taken[index + 1 :]]):
                    taken, changed = candidate, True
                    break
    return taken
