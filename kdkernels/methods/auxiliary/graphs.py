"""What stays outside the graphs of torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """A break in the graph around the function: how much of a bank is filled would be a constant of it, and every step
    a recompilation. (`torch.compiler.disable` itself, here, would import the compiler for those who compile nothing.)
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call
