"""Options of `pytest bench/`, and the measurements that its tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import machine, results
from .cases import Case
from .measure import QUICK, Entry, Limits, measure


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kdkernels benchmarks")
    group.addoption("--bench-full", action="store_true", help="the cases and rounds of `python -m bench.run`")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu")
    group.addoption("--bench-write", action="store_true", help="put the records into bench/results/")


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest):
    """case -> its entries by name: all contenders of a case are measured together, when the first is asked for."""
    config = request.config
    device = config.getoption("--bench-device")
    limits = Limits() if config.getoption("--bench-full") else QUICK
    facts = machine.facts(device)
    known: dict[Case, dict[str, Entry]] = {}

    def get(case: Case) -> dict[str, Entry]:
        if case not in known:
            entries = measure(case, device, limits)
            known[case] = {entry.name: entry for entry in entries}
            if config.getoption("--bench-write"):
                results.merge(results.file_for(facts), [results.record(case, entries, facts)])
        return known[case]

    yield get


Measured = Callable[[Case], dict[str, Entry]]
