"""Who looks at a call beside plain eager PyTorch: a compiler, a tracer, a transform, a tensor subclass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
_in_functorch = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def hides(tensor: Tensor) -> bool:
    """Whether a tensor's class takes every operation over: its own memory, if it has any, tells nothing."""
    kind = type(tensor)
    return kind is not Tensor and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active, to which a kernel would be a wall."""
    return _in_functorch() or forward_ad._current_level >= 0


def recorded() -> bool:
    """Whether a tracer is looking that turns every number, the batch size too, into a constant of its graph."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._len_torch_dispatch_stack() > 0 or bool(torch._C._get_tracing_state())


def traced(*tensors: Tensor | None) -> bool:
    """Whether something other than plain eager PyTorch is looking: a compiler, a tracer, a tensor subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state():
        return True
    for tensor in tensors:  # noqa: SIM110 - loops, here and below: a generator costs more to set up than it has to do
        if type(tensor) not in _PLAIN:
            return True
    return False
