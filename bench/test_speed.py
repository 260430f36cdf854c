"""pytest-benchmark's view of the measurements: its tables, its options to save, compare and fail on a regression.

pytest-benchmark times one function after the other, which on a shared machine compares one moment with another. Here
the contenders of a case are measured side by side by `bench.measure`, and their samples are replayed to the plugin
over a clock of our own, so that its statistics are those of the interleaved rounds.
"""

from __future__ import annotations

import pytest

from .cases import cases, quick_cases
from .contenders import OURS, STREAM, names


class _ReplayClock:
    """A timer that stands still except while `replay` runs, when it advances by the next recorded sample."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples = iter(())

    def __call__(self) -> float:
        return self.now

    def replay(self) -> None:
        self.now += next(self.samples)


_clock = _ReplayClock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    chosen = cases() if config.getoption("--bench-full") else quick_cases()
    parameters = [
        pytest.param(case, name, id=f"{case.name} {name}".replace(" ", "-"))
        for case in chosen
        for name in (*names(case, config.getoption("--bench-device")), STREAM)
    ]
    metafunc.parametrize(("case", "name"), parameters)


@pytest.mark.benchmark(timer=_clock)
def test_speed(case, name, measured, benchmark) -> None:
    entry = measured(case)[name]
    if entry.refused and not name.startswith(OURS):
        pytest.skip(f"{name} has no number: {entry.refused}")
    assert entry.refused is None
    benchmark.group = case.name
    benchmark.extra_info["peak_bytes"] = entry.peak_bytes
    _clock.samples = iter(entry.samples)
    benchmark.pedantic(_clock.replay, rounds=len(entry.samples))
