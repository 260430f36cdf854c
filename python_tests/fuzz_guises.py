"""The same values in tensors that a kernel cannot read by address, or that autograd and the checks see otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fuzz_faults import Legal
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

Guise = Callable[[Tensor], object]


class Wrapped(Tensor):
    """A wrapper subclass: its own storage is empty, its values are another tensor's."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        options = {"dtype": inner.dtype, "device": inner.device, "strides": inner.stride()}
        self = Tensor._make_wrapper_subclass(cls, inner.shape, **options, requires_grad=inner.requires_grad)
        self.inner = inner
        return self

    def __init__(self, inner: Tensor) -> None:
        del inner

    def full_tensor(self) -> Tensor:
        return self.inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        inside = tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        result = tree_map_only(Tensor, Wrapped, function(*inside[0], **inside[1]))
        return return_and_correct_aliasing(function, args, kwargs or {}, result)


def negated(x: Tensor) -> Tensor:
    """The lazy negation, as it comes out of a complex number's conjugate."""
    if x.dtype not in (torch.float32, torch.float64):
        raise Legal
    lazy = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert lazy.is_neg()
    return lazy


def without_storage(x: Tensor) -> Tensor:
    """PyTorch's zero without memory; where zeros are what there is."""
    if bool((x != 0).any()) or x.requires_grad:  # it would be a leaf of its own
        raise Legal
    return torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device)


def inference(x: Tensor) -> Tensor:
    if x.requires_grad:
        raise Legal
    with torch.inference_mode():
        return x.clone()


def distributed(x: Tensor) -> Tensor:
    """A DTensor, replicated over the one process that there is."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DTensor.from_local(x, init_device_mesh("cpu", (1,)), [Replicate()])


def wrapped(x: Tensor) -> Tensor:
    if x.requires_grad:  # no gradient leads through the wrapper
        raise Legal
    return Wrapped(x)


def jagged(x: Tensor) -> Tensor:
    if x.dim() != 3 or not x.numel() or x.requires_grad:
        raise Legal
    return torch.nested.nested_tensor(list(x.unbind()), layout=torch.jagged)


def frozen_parameter(x: Tensor) -> Tensor:
    if not x.is_floating_point() or x.requires_grad:
        raise Legal
    return nn.Parameter(x, requires_grad=False)


def buffer(x: Tensor) -> Tensor:
    if x.requires_grad:
        raise Legal
    return nn.Buffer(x)


def _labels(dtype: torch.dtype) -> Guise:
    def narrowed(x: Tensor) -> Tensor:
        if x.is_floating_point() or x.dtype is torch.bool or bool((x.to(dtype).to(x.dtype) != x).any()):
            raise Legal
        return x.to(dtype)

    return narrowed


GUISES: dict[str, tuple[Guise, bool]] = {  # with whether it is promised
    "negated": (negated, False),
    "without storage": (without_storage, False),
    "inference": (inference, True),
    "DTensor": (distributed, False),
    "wrapper": (wrapped, False),
    "jagged": (jagged, False),
    "frozen parameter": (frozen_parameter, True),
    "buffer": (buffer, True),
    "int32": (_labels(torch.int32), False),
    "int16": (_labels(torch.int16), False),
    "uint8": (_labels(torch.uint8), False),
    "uint16": (_labels(torch.uint16), False),
}
