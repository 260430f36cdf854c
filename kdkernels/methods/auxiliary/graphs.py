"""What stays outside the graphs of torch.compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

P, R = ParamSpec("P"), TypeVar("R")

_REASON = (
    "how many entries an InstanceBank has, and where its next one goes, are numbers on the host that change at every "
    "step; in a graph they would be constants of it"
)


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """A break around the function in the graphs of torch.compile, of whose reason a warning tells once.

    A graph that is made for ever, by torch.export or a tracer, would be wrong from its second call on: an error.
    (`torch.compiler.disable` itself, here, would import the compiler for those who compile nothing.)
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_exporting() or _recorded():
            raise RuntimeError(f"kdkernels.methods.auxiliary cannot be exported or traced: {_REASON}")
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=_REASON)  # what fullgraph=True and torch._dynamo.explain show
            return torch.compiler.disable(_told)(function, *args, **kwargs)
        return function(*args, **kwargs)

    return call


def _recorded() -> bool:
    """Whether torch.jit.trace or make_fx is writing down what is computed."""
    if torch.compiler.is_compiling():  # it does not record what it breaks at
        return False
    return bool(torch._C._get_tracing_state()) or get_proxy_mode() is not None


def _told(function: Callable, *args: Any, **kwargs: Any) -> Any:
    _tell()
    return function(*args, **kwargs)


@functools.cache
def _tell() -> None:
    message = (
        "kdkernels.methods.auxiliary runs between the graphs of torch.compile, which break at each of its calls: "
        f"{_REASON}, and every step a recompilation. The loss is right, and as fast as in eager mode. Where "
        "fullgraph=True is wanted, compile the models and not the whole step"
    )
    warnings.warn(message, UserWarning, stacklevel=2)
