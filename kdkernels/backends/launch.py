"""How the Triton backend launches a kernel: in which form, over which grid, with how many threads."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES
from . import compiled

PARTIALS = 8
"""Numbers per part that the launches of `over_parts` exchange (kernels/divergence_split.py names them)."""


def over_rows(
    row: config.Resident | config.Streaming,
    resident: Any,
    streaming: Any,
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """The resident or the streaming form over whole rows, as this row of the launch configs says."""
    first = _first(tensors)
    count, vocab = first.shape
    bound = _bind(arguments, first)
    if isinstance(row, config.Resident):
        meta = meta | {"ROWS": row.rows, "BLOCK": _power_of_two(vocab)}
        _launch(resident, (_ceil_div(count, row.rows),), bound, first, row.threads, meta)
        return
    contiguous = aligned(*tensors)
    # By the first tensor: with the narrower of two, Triton trades tiles through shared memory where the second is it.
    width = min(16 // first.element_size(), row.widest) if contiguous else row.narrow
    meta = meta | {"LANES": row.threads, "WIDTH": width, "CONTIGUOUS": contiguous}
    if _target(first)[0] == "cuda":
        meta["maxnreg"] = row.registers  # an option of NVIDIA's compiler only
    _launch(streaming, (count,), bound, first, row.threads, meta)


def parts_of(split: config.Split, rows: int, vocab: int, tile: int, processors: int) -> int:
    """Into how many parts each of so many rows is split; 1 where a program per row fills the device."""
    if vocab <= split.vocab or rows >= processors:
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
    first = _first(tensors)
    rows, vocab = first.shape
    if vocab <= split.vocab or rows == 0 or rows >= processors(first):
        return False
    contiguous = aligned(*tensors)
    width = 16 // first.element_size() if contiguous else split.narrow
    tile = split.threads * width
    parts = parts_of(split, rows, vocab, tile, processors(first))
    if parts == 1:
        return False
    span = _ceil_div(_ceil_div(vocab, parts), tile) * tile
    parts = _ceil_div(vocab, span)
    partials = torch.empty(rows, parts, PARTIALS, dtype=torch.float32, device=first.device)
    layout: dict[str, Any] = {"SPAN": span, "LAYOUT": (split.threads, width, contiguous)}
    if _target(first)[0] == "cuda":
        layout["maxnreg"] = split.registers
    both = meta | layout | {"PARTS": _power_of_two(parts)}
    writes_last = tensors[-1] is not None and not meta["BALANCED"]
    sums, terms, finish = kernels
    given, between = _bind(arguments, first), _bind((partials, (rows, vocab, parts)), first)
    _launch(sums, (rows, parts), given.and_then(between), first, split.threads, layout)
    every = given.and_then(_bind((table,), first)).and_then(between)
    _launch(terms, (rows, parts), every, first, split.threads, both)
    _launch(finish, (rows, parts if writes_last else 1), every, first, split.threads, both)
    return True


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; 1, which splits nothing, where there is no device."""
    return _processors(tensor.get_device()) if tensor.is_cuda else 1


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def over_tiles(row: config.Tiled, kernel: Any, arguments: tuple[Any, ...], where: Tensor, meta: dict[str, Any]) -> None:
    """A kernel that maps tile by tile, over rows and columns."""
    count, vocab = where.shape
    block = min(_power_of_two(vocab), row.tile)
    tile_rows = row.tile // block
    grid = (_ceil_div(count, tile_rows), _ceil_div(vocab, block * row.steps))
    meta = meta | {"ROWS": tile_rows, "BLOCK": block, "STEPS": row.steps}
    _launch(kernel, grid, _bind(arguments, where), where, row.threads, meta)


def scale(row: config.Shared, kernel: Any, gradient: Tensor, factor: Tensor) -> None:
    """The kernel that multiplies rows, over no more programs than the device runs at once."""
    rows, vocab = gradient.shape
    vector = unit(gradient)
    block = min(_power_of_two(vocab), row.tile)
    height = row.tile // block
    programs = row.programs * processors(gradient)
    tiles = _ceil_div(_ceil_div(rows, height), programs)
    down = _ceil_div(rows, tiles * height) if tiles else 1
    steps = _ceil_div(_ceil_div(vocab, block), max(programs // down, 1))
    arguments = (gradient, factor, gradient.stride(0) // vector, rows, vocab // vector, tiles, steps)
    meta = {
        "UNIT": vector,
        "PER_ROW": bool(factor.dim() and factor.stride(0)),
        "ROWS": height,
        "BLOCK": block,
        "CHECKED": row.threads,
    }
    grid = (down, _ceil_div(vocab, steps * block) if steps else 1)
    _launch(kernel, grid, _bind(arguments, gradient), gradient, row.threads, meta)


def unit(*tensors: Tensor | None) -> int:
    """Columns of the widest vector, of at most 16 bytes, that may be loaded at every multiple of it in all these rows.

    It divides the number of columns, so that none lies across a row's end.
    """
    bits = 0
    for t in tensors:
        if t is not None:
            size = t.element_size()
            bits |= 16 // size | t.data_ptr() // size | t.stride(0) | t.shape[1]
    return bits & -bits


def aligned(*tensors: Tensor | None) -> bool:
    """Whether vector loads may touch the rows of all of these."""
    for t in tensors:  # noqa: SIM110 - a generator costs more to set up than it has to do
        if t is not None and (t.data_ptr() | t.stride(0)) & 15:
            return False
    return True


def strides(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """Row strides in elements, 0 for a tensor that is not there."""
    return tuple([0 if tensor is None else tensor.stride(0) for tensor in tensors])


@functools.cache
def interpreted() -> bool:
    """Whether the kernels were decorated under TRITON_INTERPRET=1, which counts only at the import of a kernel."""
    import triton

    return not isinstance(LOSSES["forward_kl"].term, triton.JITFunction)


def _bind(arguments: tuple[Any, ...], where: Tensor) -> compiled.Arguments:
    return compiled.Arguments(arguments, [], []) if interpreted() else compiled.bind(arguments, where)


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: compiled.Arguments,
    where: Tensor,
    threads: int,
    meta: dict[str, Any],
) -> None:
    if where.numel() == 0:
        return
    if interpreted():
        kernel[grid](*arguments.given, **meta, num_warps=threads // 32)
    elif not where.is_cuda or where.get_device() == torch.cuda.current_device():
        compiled.launch(kernel, grid, arguments, where, threads, meta)
    else:
        with torch.cuda.device(where.device):
            compiled.launch(kernel, grid, arguments, where, threads, meta)


def _first(tensors: tuple[Tensor | None, ...]) -> Tensor:
    """The one that says how many rows and columns there are: it is always there."""
    assert tensors[0] is not None
    return tensors[0]


def _target(where: Tensor) -> tuple[str, int]:
    """("cuda" | "hip" | "interpreter", threads of a warp)."""
    return ("interpreter", 32) if interpreted() else compiled.target(where)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
