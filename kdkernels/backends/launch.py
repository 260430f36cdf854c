"""How the Triton backend launches a kernel: in which form, over which grid, with how many threads."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES
from . import compiled


def over_rows(
    table: tuple[config.Resident | config.Streaming, ...],
    kernels: tuple[Any, Any],
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """The resident or the streaming form (kernels) over whole rows, as the launch configs say.

    The arguments begin with the tensors and the type of their strides, which a kernel gets in vectors; it also gets the
    rows and the columns, likewise.
    """
    first = _first(tensors)
    count, vocab = first.shape
    form = _form(table, vocab, vector_of(vocab, tensors), first.element_size(), _target(first))
    given = (*_in_vectors(arguments, form.unit), count, vocab // form.unit)
    grid = (_ceil_div(count, form.rows),)
    _launch(kernels[form.which], grid, _bind(given, first), first, form.threads, meta | form.meta)


class _Form(NamedTuple):
    which: int
    rows: int
    """Of a program."""
    threads: int
    unit: int
    meta: dict[str, Any]


@functools.lru_cache(maxsize=1024)
def _form(
    table: tuple[config.Resident | config.Streaming, ...], vocab: int, unit: int, item: int, target: tuple[str, int]
) -> _Form:
    """For rows of so many columns of `item` bytes in the first tensor, which vectors of `unit` may touch."""
    row = config.choose(table, vocab * item)
    if isinstance(row, config.Resident):
        lanes = min(row.lanes * target[1] // 32, 512)  # on 64-wide machines the same share of a warp
        threads = max(lanes, target[1])
        rows, parts = threads // lanes, _power_of_two(_ceil_div(vocab, lanes * unit))
        return _Form(0, rows, threads, unit, {"LAYOUT": (unit, parts, rows, lanes)})
    layout, threads = _streamed(row, unit, item)
    return _Form(1, 1, threads, layout[2], {"LAYOUT": layout, **_registers(row, target)})


def _streamed(row: config.Streaming | config.Split, unit: int, item: int) -> tuple[tuple[int, int, int], int]:
    """(LANES, WIDTH, UNIT) and the threads of a streaming form."""
    # By the first tensor: with the narrower of two, Triton trades tiles through shared memory where the second is it.
    width = min(16 // item, row.widest)
    width, unit = (width, width) if unit >= width else (row.narrow, 1)
    lanes = min(row.tile[item > 2] // width, 1024)
    return (lanes, width, unit), lanes


def _registers(row: config.Streaming | config.Split, target: tuple[str, int]) -> dict[str, int]:
    return {"maxnreg": row.registers} if target[0] == "cuda" else {}  # an option of NVIDIA's compiler only


def vector_of(vocab: int, tensors: tuple[Tensor | None, ...]) -> int:
    """Columns of the widest vector, a power of two of 16 bytes at most, that may be loaded at any multiple of it."""
    bits, widest = vocab, 1
    for t in tensors:
        if t is not None:
            size = t.element_size()
            bits |= t.stride(0) | t.data_ptr() // size
            widest = max(widest, 16 // size)
    bits |= widest
    return bits & -bits


def _in_vectors(arguments: tuple[Any, ...], unit: int) -> tuple[Any, ...]:
    tensors, strides, *rest = arguments
    return (tensors, strides._make([0 if t is None else t.stride(0) // unit for t in tensors]), *rest)


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
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> bool:
    """The three launches of a divergence over parts of rows; False, and nothing is launched, where rows are enough.

    The arguments are those of `over_rows`; the first launch is not given the last of them, the table.
    """
    first = _first(tensors)
    rows, vocab = first.shape
    if vocab <= split.vocab or rows == 0 or 2 * rows > processors(first):
        return False
    layout, threads = _streamed(split, vector_of(vocab, tensors), first.element_size())
    tile, unit = layout[0] * layout[1], layout[2]
    parts = parts_of(split, rows, vocab, tile, processors(first))
    if parts == 1:
        return False
    span = _ceil_div(_ceil_div(vocab, parts), tile) * tile
    parts = _ceil_div(vocab, span)
    partials = torch.empty(rows, parts, config.PARTIALS, dtype=torch.float32, device=first.device)
    form = {"SPAN": span, "LAYOUT": layout, **_registers(split, _target(first))}
    both = meta | form | {"PARTS": _power_of_two(parts)}
    writes_last = tensors[-1] is not None and not meta["BALANCED"]
    sums, terms, finish = kernels
    *given, table = _in_vectors(arguments, unit)
    before, between = _bind(tuple(given), first), _bind((partials, (rows, vocab // unit, parts)), first)
    _launch(sums, (rows, parts), before.and_then(between), first, threads, form)
    every = before.and_then(_bind((table,), first)).and_then(between)
    _launch(terms, (rows, parts), every, first, threads, both)
    _launch(finish, (rows, parts if writes_last else 1), every, first, threads, both)
    return True


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; 1, which splits nothing, where there is no device."""
    return _processors(tensor.get_device()) if tensor.is_cuda else 1


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def over_tiles(
    row: config.Tiled,
    kernel: Any,
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """A kernel that maps tile by tile, over rows and columns. Arguments: as in `over_rows`."""
    first = _first(tensors)
    count, vocab = first.shape
    unit = vector_of(vocab, tensors)
    block = min(_power_of_two(vocab), row.tile)
    tile_rows = row.tile // block
    grid = (_ceil_div(count, tile_rows), _ceil_div(vocab, block * row.steps))
    meta = meta | {"UNIT": unit, "ROWS": tile_rows, "BLOCK": block, "STEPS": row.steps}
    given = (*_in_vectors(arguments, unit), count, vocab // unit)
    _launch(kernel, grid, _bind(given, first), first, row.threads, meta)


def scale(row: config.Shared, kernel: Any, gradient: Tensor, factor: Tensor) -> None:
    """The kernel that multiplies rows, over no more programs than the device runs at once."""
    rows, vocab = gradient.shape
    vector = vector_of(vocab, (gradient,))
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


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when the first term was made, as the kernels were: later it does not count."""
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
    return cast(Tensor, tensors[0])


def _target(where: Tensor) -> tuple[str, int]:
    """("cuda" | "hip" | "interpreter", threads of a warp)."""
    return ("interpreter", 32) if interpreted() else compiled.target(where)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
