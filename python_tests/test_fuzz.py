"""Property tests: a few thousand calls drawn by hypothesis, each against the float64 oracle or against "a documented
exception and nothing written". `make fuzz` plays a million of the same cases (fuzz_drive.py).
"""

from __future__ import annotations

import os
import secrets

import pytest
import torch
from fuzz_calls import legal
from fuzz_cases import Failure, as_in_the_suite, play
from fuzz_check import run
from fuzz_choices import Choices, replayed, seeded, shrink
from fuzz_faults import FAULTS
from fuzz_known_open import KNOWN_OPEN
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = {"legal": 1000, "illegal": 600, "exotic": 200}  # per seed
FRESH = int(os.environ.get("KDKERNELS_FUZZ_SEED", secrets.randbelow(1 << 30)))
SEEDS = {"fixed": 0, "fresh": FRESH}


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left():
    """One is made for DTensors; tests of other files make their own."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("which", SEEDS)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_promises(kind, which):
    """With a fixed seed, and with a fresh one that a failure prints."""

    @seed(SEEDS[which])
    @settings(
        max_examples=EXAMPLES[kind],
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @given(st.data())
    def holds(data):
        taken = Choices(lambda count: data.draw(st.integers(0, count - 1)))
        try:
            play(kind, taken)
        except Failure as failure:
            again = f"python python_tests/fuzz_drive.py --replay {kind} {','.join(map(str, taken.taken))}"
            raise Failure(f"{failure}\nagain: {again}\nor KDKERNELS_FUZZ_SEED={FRESH}") from failure

    with as_in_the_suite():
        holds()


def test_a_wrong_number_is_seen():
    """The fuzzer is worth what its check sees: a value and a gradient off by a thousandth."""
    seen = 0
    for index in range(60):
        call = legal(seeded(index))
        call.twice, honest = False, call.function
        call.function = lambda honest=honest, **arguments: honest(**arguments) * 1.001
        try:
            run(call)
        except AssertionError as error:
            seen += "off by" in str(error)
    assert seen > 20  # the others are 0, NaN, infinite, or half precision


def test_a_written_argument_is_seen():
    call = legal(replayed([]))

    def writes(**arguments):
        arguments["teacher"].add_(1.0)
        return honest(**arguments)

    call.function, honest = writes, call.function
    with pytest.raises(AssertionError, match="teacher was written to"):
        run(call)


def test_a_case_is_its_choices():
    first = legal(choices := seeded(3))
    again = legal(replayed(choices.taken))
    assert str(first) == str(again)
    for name, value in first.arguments.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(7.0), again.arguments[name].nan_to_num(7.0))


def test_shrinking_finds_the_smallest():
    fails = lambda taken: len(taken) >= 3 and taken[2] >= 5  # noqa: E731
    assert shrink([9, 9, 9, 9, 9, 9], fails) == [0, 0, 5]


def test_what_is_known_and_open_exists():
    """A fault that is mended is taken off the list; a name that is spelt otherwise leaves nothing out."""
    names = {str(fault) for faults in FAULTS.values() for fault in faults}
    unusual = ("wrapper", "without storage", "negated", "DTensor", "jagged", "numpy", "a tensor (1,)")
    for name in KNOWN_OPEN:
        elsewhere = ("reference: ", "trace: ", "make_fx: ", "export: ", "overwritten ", "inplace beside ")
        assert name in names or name.endswith(unusual) or name.startswith(elsewhere)
