"""What is said where "auto" ends at plain PyTorch: once per reason, or, with KDKERNELS_STRICT=1, as an error."""

from __future__ import annotations

import os
import threading
import warnings

_STRICT = os.environ.get("KDKERNELS_STRICT", "") not in ("", "0")
_said: set[str] = set()
_lock = threading.Lock()


class FallbackWarning(UserWarning):
    """A call that chose no backend runs on plain PyTorch, which is right and slow."""


def say(reason: str) -> None:
    """Warn once per process and reason; RuntimeError where KDKERNELS_STRICT=1 was set before the import."""
    message = f"kdkernels: backend='auto' ends at plain PyTorch ('reference'): {reason}"
    if _STRICT:
        raise RuntimeError(f"{message}; KDKERNELS_STRICT=1 makes that an error")
    _warn(message)


def _warn(message: str) -> None:
    with _lock:
        if message in _said:
            return
        _said.add(message)
    warnings.warn(
        f"{message}. Choose backend='reference' to keep it without this warning", FallbackWarning, stacklevel=2
    )


# torch.compile calls it while it traces, as torch.compiler.assume_constant_result would have it (which imports the
# compiler to say so): neither the lock nor the warning belongs into a graph.
_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]
