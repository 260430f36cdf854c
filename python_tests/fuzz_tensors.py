"""Tensors for fuzz cases: logits of every temper, and every way in which the same values may lie in memory.

What surrounds a tensor in its storage is NaN (a label that is no class, True in a mask): a read beside it shows.
"""

from __future__ import annotations

import math

import torch
from cases import BF16, F16, F32, F64
from fuzz_choices import Choices
from torch import Tensor

DTYPES = (F32, BF16, F16, F64)
NO_CLASS = 1 << 40
# The ends of vector widths and of the short rows that are walked sixteen to a vector, and their neighbours.
EDGES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 112, 113, 127, 128, 191, 192, 193, 255, 256, 257)


class Plain(Tensor):
    """A subclass that changes nothing, as torchvision's and fastai's do."""


def leading(c: Choices) -> tuple[int, ...]:
    """Up to four leading dimensions of a few rows, now and then of none."""
    dimensions, shape = c.pick((1, 2, 0, 3, 4)), []
    for _ in range(dimensions):
        most = max(40 // max(math.prod(shape), 1), 1)
        shape.append(0 if c.chance(2) else min(c.pick((2, 1, 3, 5, 17, 4)), most))
    return tuple(shape)


def vocabulary(c: Choices) -> int:
    kind = c.below(20)
    if kind < 10:
        return c.pick(EDGES)
    if kind < 19:
        return 1 + c.below(40 if kind < 16 else 300)
    return c.pick((1000, 1024, 1271, 2049))


def noise(c: Choices, *shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(c.below(1 << 16)), dtype=F64)


def logits(c: Choices, *shape: int) -> Tensor:
    """Logits in float64: ordinary ones, and those that no formula likes."""
    z, kind = noise(c, *shape), c.below(14)
    if kind < 6:
        return z * (2.0, 2.0, 2.0, 0.01, 8.0, 20.0)[kind]
    if kind == 6:  # ties
        return z.round()
    if kind == 7:
        return torch.zeros_like(z)
    if kind == 8:
        return z.sign() * 1e4 + z
    if kind == 9:
        return z + c.pick((8192.0, -8192.0))
    if kind in (10, 11):  # classes that are not there
        return (2.0 * z).masked_fill(torch.arange(shape[-1]) % c.pick((4, 2, 3, 16)) == 1, -math.inf)
    if kind == 12:  # one class has all the mass
        return z.masked_fill(torch.arange(shape[-1]) != c.below(shape[-1]), -math.inf)
    rare = torch.zeros(shape, dtype=torch.bool)
    rare.view(-1)[c.below(max(rare.numel(), 1)) :][:1] = True
    return z.masked_fill(rare, c.pick((math.nan, math.inf, -math.inf)))


def _buffer(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    beside = True if dtype is torch.bool else math.nan if dtype.is_floating_point else NO_CLASS
    return torch.full(shape, beside, dtype=dtype)


def _inside(values: Tensor, wide: tuple[int, ...], index: tuple) -> Tensor:
    """A slice of a wider buffer that holds these values."""
    view = _buffer(wide, values.dtype)[index]
    view.copy_(values)
    return view


def offset(values: Tensor, c: Choices) -> Tensor:
    """Storage offsets 0 to 17: no vector's alignment."""
    start = c.below(18)
    return _inside(values.reshape(-1), (start + values.numel() + 3,), (slice(start, start + values.numel()),)).view(
        values.shape
    )


def before_its_base(values: Tensor, c: Choices) -> Tensor:
    """A view that starts before the tensor it is a view of: what a negative offset is in PyTorch."""
    base = _buffer((values.numel() + 9,), values.dtype)[5:]
    view = base.as_strided(values.shape, values.contiguous().stride(), c.below(5))
    view.copy_(values)
    return view


def wider(values: Tensor, c: Choices) -> Tensor:
    """A vocabulary's slice of a wider buffer (of rows, where there is a row alone)."""
    before, after = c.below(5), 1 + c.below(20)
    shape = (*values.shape[:-1], before + values.shape[-1] + after)
    return _inside(values, shape, (..., slice(before, before + values.shape[-1])))


def every_other(values: Tensor, c: Choices) -> Tensor:
    """Of any one dimension."""
    axis = c.below(values.dim())
    shape = [size * (2 if each == axis else 1) for each, size in enumerate(values.shape)]
    return _inside(values, tuple(shape), (*[slice(None)] * axis, slice(None, None, 2)))


def without_last(values: Tensor, c: Choices) -> Tensor:
    """logits[:, :-1], the causal shift, over the dimension before the last where there is one."""
    axis = max(values.dim() - 2, 0)
    shape = [size + (each == axis) for each, size in enumerate(values.shape)]
    return _inside(values, tuple(shape), (*[slice(None)] * axis, slice(0, -1)))


def transposed(values: Tensor, c: Choices) -> Tensor:
    """Any two dimensions, the vocabulary's included, in the other order in memory."""
    a, b = c.below(values.dim()), c.below(values.dim())
    return values.transpose(a, b).contiguous().transpose(a, b)


def expanded(values: Tensor, c: Choices) -> Tensor:
    """One slice for all of a dimension that is not the last (of one: for all of it), with stride 0."""
    axis = c.below(max(values.dim() - 1, 1))
    if not values.shape[axis]:
        return values
    return values.narrow(axis, 0, 1).clone(memory_format=torch.contiguous_format).expand(values.shape)


LAYOUTS = (offset, wider, without_last, every_other, transposed, before_its_base, expanded)


def laid_out(values: Tensor, c: Choices) -> Tensor:
    """The values in one of many layouts; `expanded` repeats the first of them."""
    kind = c.below(12)
    return values.contiguous() if kind < 5 or not values.dim() else LAYOUTS[kind - 5](values, c)


def storage_bytes(tensor: Tensor) -> Tensor:
    """All of a storage, what no element of the tensor shows included."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def describe(value: object) -> str:
    """A tensor as what made it differ: dtype, shape, strides, offset; its values where they are few."""
    if not isinstance(value, Tensor):
        return repr(value)
    text = f"{type(value).__name__}({str(value.dtype)[6:]}, {tuple(value.shape)}"
    if not value.is_contiguous() or value.storage_offset():
        text += f", strides {value.stride()}, offset {value.storage_offset()}"
    text += ", requires_grad" if value.requires_grad else ""
    few = value.numel() <= 24 and value.device.type == "cpu"
    return text + (f", {value.detach().as_subclass(Tensor).tolist()})" if few else ")")
