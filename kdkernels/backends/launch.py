"""How the Triton backend launches a kernel: in which form, over which grid, with how many threads."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES

PARTIALS = 8
"""Numbers per part that the launches of `over_parts` exchange (kernels/divergence_split.py names them)."""


def over_rows(
    row: config.OldResident | config.OldStreaming,
    resident: Any,
    streaming: Any,
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """The resident or the streaming form over whole rows, as this row of the launch configs says."""
    present = [tensor for tensor in tensors if tensor is not None]
    count, vocab = present[0].shape
    if isinstance(row, config.OldResident):
        meta = meta | {"ROWS": row.rows, "BLOCK": _power_of_two(vocab)}
        _launch(resident, (_ceil_div(count, row.rows),), arguments, present[0], row.threads, meta)
        return
    contiguous = aligned(*present)
    # By the first tensor: with the narrower of two, Triton trades tiles through shared memory where the second is it.
    width = min(16 // present[0].element_size(), row.widest) if contiguous else row.narrow
    meta = meta | {"LANES": row.threads, "WIDTH": width, "CONTIGUOUS": contiguous}
    if _target()[0] == "cuda":
        meta["maxnreg"] = row.registers  # an option of NVIDIA's compiler only
    _launch(streaming, (count,), arguments, present[0], row.threads, meta)


def parts_of(split: config.Split, rows: int, vocab: int, tile: int, processors: int) -> int:
    """Into how many parts each of so many rows is split; 1 where a program per row fills the device."""
    if vocab <= split.vocab or 2 * rows > processors:
        return 1
    wanted = _power_of_two(_ceil_div(split.fill * processors, max(rows, 1)))  # a power of two: few variants to compile
    return min(wanted, _power_of_two(_ceil_div(vocab, split.tiles * tile) + 1) // 2)


def over_parts(
    split: config.Split,
    kernels: tuple[Any, Any, Any],
    arguments: tuple[Any, ...],
    table: Any,
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> bool:
    """The three launches of a divergence over parts of rows; False, and nothing is launched, where rows are enough."""
    present = [tensor for tensor in tensors if tensor is not None]
    first, (rows, vocab) = present[0], present[0].shape
    if vocab <= split.vocab:
        return False
    layout, threads = streamed(split, vector_of(vocab, present), first)
    tile, unit = layout[0] * layout[1], layout[2]
    parts = parts_of(split, rows, vocab, tile, processors(first))
    if parts == 1 or rows == 0:
        return False
    span = _ceil_div(_ceil_div(vocab, parts), tile) * tile
    parts = _ceil_div(vocab, span)
    partials = torch.empty(rows, parts, PARTIALS, dtype=torch.float32, device=first.device)
    shape = (rows, vocab // unit, parts)
    form = {"SPAN": span, "LAYOUT": layout, **registers(split)}
    both = meta | form | {"PARTS": _power_of_two(parts)}
    writes_last = tensors[-1] is not None and not meta["BALANCED"]
    sums, terms, finish = kernels
    tensors_, strides, *rest = arguments
    arguments = (tensors_, type(strides)(*(stride // unit for stride in strides)), *rest)
    _launch(sums, (rows, parts), (*arguments, partials, shape), first, threads, form)
    _launch(terms, (rows, parts), (*arguments, table, partials, shape), first, threads, both)
    last = (rows, parts if writes_last else 1)
    _launch(finish, last, (*arguments, table, partials, shape), first, threads, both)
    return True


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; 1, which splits nothing, where there is no device."""
    if not tensor.is_cuda:
        return 1
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def over_whole_rows(
    row: config.Resident | config.Streaming,
    kernels: tuple[Any, Any],
    arguments: tuple[Any, ...],
    table: Any,
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """The resident or the streaming form of a divergence (kernels), as this row of the launch configs says."""
    present = [tensor for tensor in tensors if tensor is not None]
    first, (count, vocab) = present[0], present[0].shape
    unit = vector_of(vocab, present)
    if isinstance(row, config.Resident):
        warp = _target()[1]
        lanes = min(row.lanes * warp // 32, 512)  # on 64-wide machines the same share of a warp
        threads = max(lanes, warp)
        rows, parts = threads // lanes, _power_of_two(_ceil_div(vocab, lanes * unit))
        meta = meta | {"LAYOUT": (unit, parts, rows, lanes)}
        kernel, grid = kernels[0], (_ceil_div(count, rows),)
    else:
        layout, threads = streamed(row, unit, first)
        unit = layout[2]
        meta = meta | {"LAYOUT": layout, **registers(row)}
        kernel, grid = kernels[1], (count,)
    tensors_, strides, *rest = arguments
    arguments = (tensors_, type(strides)(*(stride // unit for stride in strides)), *rest, table, count, vocab // unit)
    _launch(kernel, grid, arguments, first, threads, meta)


def streamed(row: config.Streaming | config.Split, unit: int, first: Tensor) -> tuple[tuple[int, int, int], int]:
    """(LANES, WIDTH, UNIT) and the threads of a streaming form."""
    # By the first tensor: with the narrower of two, Triton trades tiles through shared memory where the second is it.
    width = min(16 // first.element_size(), row.widest)
    width, unit = (width, width) if unit >= width else (row.narrow, 1)
    lanes = min(row.tile[first.element_size() > 2] // width, 1024)
    return (lanes, width, unit), lanes


def registers(row: config.Streaming | config.Split) -> dict[str, int]:
    return {"maxnreg": row.registers} if _target()[0] == "cuda" else {}  # an option of NVIDIA's compiler only


def vector_of(vocab: int, tensors: list[Tensor]) -> int:
    """The columns of the widest vector, a power of two of 16 bytes at most, that may be loaded at any multiple of it."""
    bits = vocab | 16 // min(tensor.element_size() for tensor in tensors)
    for tensor in tensors:
        bits |= tensor.stride(0) | tensor.data_ptr() // tensor.element_size()
    return bits & -bits


def over_tiles(row: config.Tiled, kernel: Any, arguments: tuple[Any, ...], where: Tensor, meta: dict[str, Any]) -> None:
    """A kernel that maps tile by tile, over rows and columns."""
    count, vocab = where.shape
    block = min(_power_of_two(vocab), row.tile)
    tile_rows = row.tile // block
    grid = (_ceil_div(count, tile_rows), _ceil_div(vocab, block * row.steps))
    meta = meta | {"ROWS": tile_rows, "BLOCK": block, "STEPS": row.steps}
    _launch(kernel, grid, arguments, where, row.threads, meta)


def aligned(*tensors: Tensor | None) -> bool:
    """Whether vector loads may touch the rows of all of these."""
    return all(t is None or (t.data_ptr() % 16 == 0 and t.stride(0) % 16 == 0) for t in tensors)


def strides(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """Row strides in elements, 0 for a tensor that is not there."""
    return tuple(0 if tensor is None else tensor.stride(0) for tensor in tensors)


def interpreted() -> bool:
    """Whether the kernels were decorated under TRITON_INTERPRET=1, which counts only at the import of a kernel."""
    import triton

    return not isinstance(LOSSES["forward_kl"].term, triton.JITFunction)


def _launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], where: Tensor, threads: int, meta: dict[str, Any]
) -> None:
    if where.numel() == 0:
        return
    guard = torch.cuda.device(where.device) if where.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[grid](*arguments, **meta, num_warps=threads // _target()[1])


def _target() -> tuple[str, int]:
    """("cuda" | "hip" | "interpreter", threads of a warp)."""
    if interpreted():
        return "interpreter", 32
    from triton.runtime.driver import driver

    target = driver.active.get_current_target()
    return target.backend, target.warp_size


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
