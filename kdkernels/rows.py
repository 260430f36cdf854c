"""Logits of any leading shape as rows in memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_WORTH_A_CALL = 1 << 15  # elements: fewer are copied in less time than a call takes to start


def evenly_spaced(tensor: Tensor) -> bool:
    """Whether one stride leads from each row of (..., columns) to the next."""
    outer = [(size, stride) for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size != 1]
    return all(here[1] == below[0] * below[1] for here, below in zip(outer, outer[1:], strict=False))


def separate(tensor: Tensor) -> bool:
    """Whether the rows of (..., columns) are contiguous, evenly spaced, and do not overlap."""
    if tensor.is_contiguous():
        return True
    columns = tensor.shape[-1]
    if columns > 1 and tensor.stride(-1) != 1:
        return False
    steps = [stride for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size != 1]
    return evenly_spaced(tensor) and (not steps or steps[-1] >= columns)


def resolved(tensor: Tensor) -> Tensor:
    """A copy of a tensor that is negated lazily, or zero without memory, with what it says at its address."""
    return tensor.resolve_neg() if tensor.is_neg() else tensor.clone()


def vector(tensor: Tensor) -> Tensor:
    """A small tensor (per row, or a loss's table) as kernels read it: contiguous."""
    if tensor.is_neg() or tensor._is_zerotensor():
        tensor = resolved(tensor)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def overwritable(tensor: Tensor) -> Tensor:
    """A tensor (..., columns) whose rows a kernel may write to: this one, unless they overlap, are no rows in memory or
    do not hold what it says."""
    if tensor.is_neg() or tensor._is_zerotensor():
        tensor = resolved(tensor)
    return tensor if separate(tensor) else tensor.contiguous()


def reshaped(result: Tensor, shape: Sequence[int]) -> Tensor:
    """A result that a kernel has just filled, in another shape of as many elements, without a view of it: autograd lets
    nobody modify a view that a Function returns."""
    return result if result.dim() == len(shape) else result.resize_(shape)


def as_rows(tensor: Tensor, vocab: int | None) -> Tensor:
    """(..., columns) as (rows, vocab), all columns for None, with unit last stride: a view wherever one exists."""
    if tensor.is_neg() or tensor._is_zerotensor():
        tensor = resolved(tensor)
    columns = tensor.shape[-1]
    if tensor.stride(-1) != 1 and columns > 1:
        tensor = tensor.contiguous()
    if tensor.dim() != 2:
        tensor = tensor.reshape(-1, columns) if tensor.numel() else tensor.new_empty(0, columns)
    return tensor if vocab is None or vocab == columns else tensor[:, :vocab]


def uneven(tensor: Tensor) -> bool:
    """Whether rows lie in memory in several evenly spaced runs, each long enough to be worth a call of its own."""
    if tensor.dim() < 3 or tensor.is_contiguous() or tensor.stride(-1) != 1:
        return False
    return not evenly_spaced(tensor) and tensor[0].numel() >= _WORTH_A_CALL


def written_rows(gradient: Tensor, vocab: int | None) -> Tensor:
    """A gradient to fill, as (rows, vocab); its columns beyond the vocabulary become zero here."""
    rows = gradient if gradient.dim() == 2 else gradient.view(-1, gradient.shape[-1])
    if vocab is None or vocab == rows.shape[1]:
        return rows
    rows[:, vocab:].zero_()
    return rows[:, :vocab]
