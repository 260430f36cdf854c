"""What the memory of the arguments has to be like: kernels read and write it by address."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import hides, traced, transformed
from ..rows import evenly_spaced, separate

_PLAIN = (Tensor, torch.nn.Parameter)


def distributed(tensor: object) -> bool:
    """Whether this is a DTensor; torch.distributed is not imported to ask."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def readable(value: Tensor) -> bool:
    """Whether a tensor's values may be looked at: on a device that would wait for it, and a tracer has none."""
    return value.is_cpu and not hides(value) and not traced() and not transformed()


def placements(name: str, tensor: Tensor) -> None:
    """Whether every process has whole rows of a DTensor."""
    vocabulary = tensor.dim() - 1
    for each in tensor.placements:
        if each.is_partial():
            raise ValueError(f"{name} holds sums that are not finished ({each}): pass {name}.redistribute(...) first")
        if each.is_shard() and each.dim % tensor.dim() == vocabulary:
            raise ValueError(
                f"{name} is sharded over the vocabulary, and a loss over a vocabulary that lies across processes "
                f"(group=) is not there: redistribute {name} to whole rows, and pass {name}.to_local()"
            )


def dense(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        rows = ": pass its rows, .values(), with one label, mask and weight for each" if tensor.is_nested else ""
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}{rows}")
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pass torch.cat(list({name}.unbind()))")


def companion(name: str, tensor: Tensor, student: Tensor | None) -> None:
    """Whether an argument is of a kind with the logits: what a DTensor holds belongs to its mesh, not to this process.

    What else hides its memory goes to the registered operator, which its class takes over.
    """
    if type(tensor) is not Tensor and distributed(tensor) and not distributed(student):
        raise TypeError(f"{name} is a DTensor and the student is not: pass {name}.to_local() or {name}.full_tensor()")


def inplace(student: Tensor, **others: object) -> None:
    """Whether the gradient may take this buffer, said before anything is written; who traces gets no such gradient."""
    if traced(student) or transformed():
        return
    roots = (student, student._base) if student._is_view() else (student,)
    if torch.is_grad_enabled() and any(root.requires_grad and root.is_leaf for root in roots):
        raise ValueError("inplace=True needs logits that some operation computed, got a leaf that requires grad")
    if student.retains_grad:
        raise ValueError("inplace=True keeps no gradient for retain_grad(), which was asked of these logits: drop it")
    if not separate(student):
        shape, strides = tuple(student.shape), tuple(student.stride())
        raise ValueError(
            "inplace=True needs rows that are contiguous, do not overlap and are evenly spaced in memory, "
            f"got shape {shape} with strides {strides}: take all positions and shift the labels instead, "
            "F.pad(labels[:, 1:], (0, 1), value=-100), or pass a clone"
        )
    if student.is_neg() or student._is_zerotensor():
        raise ValueError("inplace=True needs logits that lie in memory as they are, got a lazy tensor: pass a clone")
    creation = getattr(torch._C._autograd, "_get_creation_meta", None)
    if creation and student._is_view() and creation(student) != torch._C._autograd.CreationMeta.DEFAULT:
        raise ValueError(
            "inplace=True cannot take a view that autograd does not follow (from chunk, split, unbind, a custom "
            "Function, or made under no_grad): pass the tensor that it is a view of, or a clone"
        )
    for name, other in others.items():
        if isinstance(other, Tensor) and other.device == student.device and _share(student, other):
            raise ValueError(
                f"inplace=True would overwrite {name}, which shares memory with the student otherwise than row by "
                f"row: pass {name}.clone()"
            )


class _Span(NamedTuple):
    """Where the rows of a tensor lie, in bytes."""

    start: int
    step: int
    length: int
    rows: int


def _span(tensor: Tensor) -> _Span:
    """The rows (the elements of a vector); as one row from end to end where they are not evenly spaced."""
    size = tensor.element_size()
    matrix = tensor if tensor.dim() > 1 else tensor.unsqueeze(-1)
    outer = [pair for pair in zip(matrix.shape[:-1], matrix.stride()[:-1], strict=True) if pair[0] != 1]
    if (matrix.shape[-1] == 1 or matrix.stride(-1) == 1) and evenly_spaced(matrix) and outer:
        rows = matrix[..., 0].numel()
        return _Span(tensor.data_ptr(), outer[-1][1] * size, matrix.shape[-1] * size, rows)
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return _Span(tensor.data_ptr(), 0, (last + 1) * size, 1)


def _share(student: Tensor, other: Tensor) -> bool:
    """Whether a byte of one is a byte of the other, unless each row is its own counterpart, element by element."""
    if not student.numel() or not other.numel() or student.is_meta:
        return False
    if other.data_ptr() == student.data_ptr() and other.dtype == student.dtype and other.shape == student.shape:
        return other.stride() != student.stride()
    a, b = _span(student), _span(other)
    if a.step != b.step or a.step == 0:
        return a.start < _end(b) and b.start < _end(a)
    # Row i of a meets row i + k of b where their starts differ by less than a row: two candidates for k.
    k = (a.start - b.start) // a.step
    for shift in (k, k + 1):
        gap = b.start + shift * a.step - a.start
        if -b.length < gap < a.length and -a.rows < shift < b.rows:
            return True
    return False


def _end(span: _Span) -> int:
    return span.start + (span.rows - 1) * span.step + span.length
