"""Rows times a factor, in place: what a saved gradient needs when the upstream gradient is not 1."""

import triton
import triton.language as tl


@triton.jit
def _scaled(factor, first, last, PER_ROW: tl.constexpr, CHECKED: tl.constexpr):
    """Whether any of these rows has a factor other than 1. They are read CHECKED at a time, not tile by tile."""
    if not PER_ROW:
        return tl.load(factor).to(tl.float32) != 1.0
    found = tl.zeros((CHECKED,), tl.int32)
    for start in range(first, last, CHECKED):
        row = start + tl.arange(0, CHECKED)
        found |= (tl.load(factor + row, mask=row < last, other=1.0).to(tl.float32) != 1.0).to(tl.int32)
    return tl.max(found, axis=0) > 0


@triton.jit(do_not_specialize=["stride", "rows", "units", "tiles", "steps"])
def scale_rows(
    gradient,
    factor,
    stride,
    rows,
    units,
    tiles,
    steps,
    UNIT: tl.constexpr,
    PER_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """gradient[r, :] *= factor[r], or factor[0] for all rows.

    Program (i, j) takes `tiles` times ROWS rows and `steps` tiles of BLOCK columns. Where its factors are all exactly 1
    it ends there: the answer to "is the upstream gradient 1?" never leaves the device. The row stride and the columns
    (units) are in multiples of UNIT, the width of a vector that may be loaded anywhere.
    """
    first = tl.program_id(0).to(tl.int64) * (tiles * ROWS)
    last = tl.minimum(first + tiles * ROWS, rows)
    if _scaled(factor, first, last, PER_ROW, CHECKED):
        left = tl.program_id(1) * (steps * BLOCK)
        right = tl.minimum(left + steps * BLOCK, units * UNIT)
        for start in range(first, last, ROWS):
            row = start + tl.arange(0, ROWS)
            at = row if PER_ROW else row * 0
            by = tl.load(factor + at, mask=row < last, other=1.0).to(tl.float32)[:, None]
            target = gradient + (row * (stride * UNIT))[:, None]
            for begin in range(left, right, BLOCK):
                column = begin + tl.arange(0, BLOCK)[None, :]
                inside = (row < last)[:, None] & (column < units * UNIT)
                tile = tl.load(target + column, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
                tl.store(target + column, (tile * by).to(gradient.dtype.element_ty), mask=inside)
