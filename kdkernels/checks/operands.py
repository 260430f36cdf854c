"""What an operator is given, checked by the operator itself: it is public, and exported and traced graphs come to it
with other shapes than they were made with. Kernels read by address, so every size is held against the others here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..backends import KERNEL_BACKENDS, STATISTICS
from ..backends.calls import Divergence, Trilateral
from ..backends.reference import accumulation_dtype
from ..losses import LOSSES, Loss
from ..losses.perturbed import LARGEST_ORDER
from . import memory
from .sides import logits


def runs(backend: str, *matrices: Tensor) -> None:
    """Whether the kernels that a graph names take these tensors."""
    if backend not in KERNEL_BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, KERNEL_BACKENDS))}, got {backend!r}")
    module = KERNEL_BACKENDS[backend]
    dtypes = tuple(matrix.dtype for matrix in matrices)
    reason = module.unavailable() or module.unsupported(matrices[0].device, dtypes)
    if reason:
        raise RuntimeError(f"backend {backend!r} was asked for and cannot run: {reason}")


def divergence(student: Tensor, teacher: Tensor, call: Divergence, upstream: Tensor | None = None) -> None:
    _sides(student, teacher, call.vocab)
    compute = accumulation_dtype(student, teacher)
    _per_row("labels", call.labels, student, torch.int64)
    _per_row("soft_weight", call.soft_weight, student, compute)
    _per_row("hard_weight", call.hard_weight, student, compute)
    _table(call, student, compute)
    if upstream is not None:
        _shaped("upstream", upstream, () if call.reduce else tuple(student.shape[:-1]), student, compute)


def softmax(tensor: Tensor) -> None:
    logits("logits", tensor)


def softmax_backward(upstream: Tensor, output: Tensor) -> None:
    logits("output", output)
    _shaped("upstream", upstream, tuple(output.shape), output, output.dtype)


def trilateral(student: Tensor, teacher: Tensor, class_mean: Tensor | None, call: Trilateral) -> None:
    vocab = _sides(student, teacher, call.vocab)
    if call.labels is None:
        raise TypeError("labels must be int64, one per row, got None")
    _per_row("labels", call.labels, student, torch.int64)
    if class_mean is None:
        return
    logits("class_mean", class_mean)
    if tuple(class_mean.shape) != (vocab, vocab):
        raise ValueError(f"class_mean must have shape {(vocab, vocab)}, got {tuple(class_mean.shape)}")
    _beside("class_mean", class_mean, student)


def trilateral_backward(
    student: Tensor,
    teacher: Tensor,
    class_mean: Tensor | None,
    call: Trilateral,
    statistics: Tensor,
    distances: Tensor,
    upstream: Tensor,
) -> None:
    trilateral(student, teacher, class_mean, call)
    compute, leading = accumulation_dtype(student, teacher), tuple(student.shape[:-1])
    edges = (*leading, 3 if class_mean is None else 5)
    _shaped("statistics", statistics, (math.prod(leading), STATISTICS), student, compute)
    _shaped("distances", distances, edges, student, compute)
    _shaped("upstream", upstream, edges, student, compute)


def _sides(student: Tensor, teacher: Tensor, vocab: int | None) -> int:
    logits("student", student)
    logits("teacher", teacher)
    _beside("teacher", teacher, student)
    whole, other = tuple(student.shape), tuple(teacher.shape)
    if other[:-1] != whole[:-1] or (vocab is None and other != whole):
        raise ValueError(f"teacher must have the shape of student {whole}, got {other}")
    if vocab is None:
        return whole[-1]
    if not 1 <= vocab <= min(whole[-1], other[-1]):
        raise ValueError(f"vocab must lie in [1, {min(whole[-1], other[-1])}], got {vocab}")
    return vocab


def _per_row(name: str, tensor: Tensor | None, student: Tensor, dtype: torch.dtype) -> None:
    if tensor is not None:
        _shaped(name, tensor, (math.prod(student.shape[:-1]),), student, dtype)


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...], student: Tensor, dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    memory.dense(name, tensor)
    _beside(name, tensor, student)


def _beside(name: str, tensor: Tensor, student: Tensor) -> None:
    if tensor.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {tensor.device}")


def _table(call: Divergence, student: Tensor, compute: torch.dtype) -> None:
    if call.loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {call.loss!r}")
    if LOSSES[call.loss].table is Loss.table:
        if call.table is not None:
            raise ValueError(f"table must be None for {call.loss!r}, which has no parameters in a tensor")
        return
    vocab = student.shape[-1] if call.vocab is None else call.vocab
    padded = (vocab + 15) // 16 * 16
    if call.table is None:
        raise ValueError(f"table must be given: {call.loss!r} has its parameters there")
    shape = tuple(call.table.shape)
    if len(shape) != 2 or shape[1] not in (1, padded) or not 1 <= shape[0] <= LARGEST_ORDER:
        raise ValueError(
            f"table must have shape (orders, 1) or (orders, {padded}), 1 to {LARGEST_ORDER} orders, got {shape}"
        )
    _shaped("table", call.table, shape, student, compute)
