"""The kinds of fuzz cases by name, each built from choices and played: shared by hypothesis (test_fuzz.py) and the bulk
driver (fuzz_drive.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import fuzz_calls
import fuzz_check
import fuzz_exotic
import fuzz_illegal
import torch
from fuzz_choices import Choices

BUILD: dict[str, Callable[[Choices], tuple | None]] = {
    "legal": lambda c: (fuzz_calls.legal(c),),
    "illegal": fuzz_illegal.illegal,
    "exotic": fuzz_exotic.exotic,
}
PLAY: dict[str, Callable[..., None]] = {
    "legal": fuzz_check.run,
    "illegal": fuzz_illegal.refused,
    "exotic": fuzz_exotic.survives,
}


class Failure(AssertionError):
    """A case that broke a promise: what broke and the call."""


@contextmanager
def as_in_the_suite():
    """One thread and, as conftest has it, NaN in every torch.empty."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(usual)


def play(kind: str, choices: Choices) -> bool:
    """Whether there was a case; a Failure where it went wrong."""
    case = BUILD[kind](choices)
    if case is None:
        return False
    try:
        PLAY[kind](*case)
    except Exception as error:
        # The instruction set that failed is the call's; a half-done surrounding must not spoil the next case.
        raise Failure(f"{type(error).__name__}: {error}\n{describe(case)}") from error
    return True


def describe(case: tuple) -> str:
    return "\n".join(map(str, reversed(case)))
