"""What forward leaves for backward, looked at again when it comes back.

Hooks on saved tensors (`torch.autograd.graph.saved_tensors_hooks`) may hand back anything, autograd passes it on as it
is, and kernels go by address. The registered operators look themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def form(tensor: Tensor | None) -> tuple | None:
    """What a saved tensor is like, for `restored`."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.layout)


def restored(tensor: Tensor | None, left: tuple | None) -> Tensor | None:
    """A saved tensor in the shape and dtype that forward left, `form`; how it lies in memory is for `rows` to say.

    What was kept in another floating dtype is converted back; anything else is an error.
    """
    came = form(tensor)
    if came == left:
        return tensor
    if came[0] != left[0] or came[2:] != left[2:] or not (came[1].is_floating_point and left[1].is_floating_point):
        raise RuntimeError(
            f"a hook on saved tensors must hand back what it was given, here {_words(*left)}, got {_words(*came)}"
        )
    return tensor.to(left[1])


def _words(shape: torch.Size, dtype: torch.dtype, device: torch.device, layout: torch.layout) -> str:
    return f"{dtype} of shape {tuple(shape)} on {device}{'' if layout is torch.strided else f', {layout}'}"
