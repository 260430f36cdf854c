"""What is said where "auto" ends at plain PyTorch: once per reason, or, with KDKERNELS_STRICT=1, as an error."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_STRICT = os.environ.get("KDKERNELS_STRICT", "") not in ("", "0")
_said: set[str] = set()
_lock = threading.Lock()


class FallbackWarning(UserWarning):
    """A call that chose no backend runs on plain PyTorch, which is right and slow."""


def outside_graphs(function: Function) -> Function:
    """torch.compile calls such a function while it traces and keeps what it returns, as it does after
    torch.compiler.assume_constant_result (which imports the compiler): locks and questions to a driver are no graph's.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def say(reason: str) -> None:
    """Warn once per process and reason; RuntimeError where KDKERNELS_STRICT=1 was set before the import."""
    message = f"kdkernels: backend='auto' ends at plain PyTorch ('reference'): {reason}"
    if _STRICT:
        raise RuntimeError(f"{message}; KDKERNELS_STRICT=1 makes that an error")
    _warn(message)


@outside_graphs
def _warn(message: str) -> None:
    with _lock:
        if message in _said:
            return
        _said.add(message)
    warnings.warn(
        f"{message}. Choose backend='reference' to keep it without this warning", FallbackWarning, stacklevel=2
    )
