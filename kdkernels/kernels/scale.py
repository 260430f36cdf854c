"""Rows times a factor, in place: what a saved gradient needs when the upstream gradient is not 1."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "factor_stride"])
def scale_rows(
    gradient,
    factor,
    stride,
    factor_stride,
    rows,
    vocab,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """gradient[r, :] *= factor[r]; factor_stride is 0 for one factor of all rows.

    Program (i, j) takes ROWS rows and STEPS tiles of BLOCK columns. Where its factors are all exactly 1 it ends there:
    the answer to "is the upstream gradient 1?" never leaves the device. Grid: (ceil(rows / ROWS), ceil(vocab / (BLOCK
    STEPS))).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    by = tl.load(factor + row * factor_stride, mask=row < rows, other=1.0).to(tl.float32)
    if tl.sum((by != 1.0).to(tl.int32), axis=0) > 0:
        target = (gradient + row * stride)[:, None]
        first = tl.program_id(1) * (BLOCK * STEPS)
        for start in range(first, tl.minimum(first + BLOCK * STEPS, vocab), BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            inside = (row < rows)[:, None] & (column < vocab)
            tile = tl.load(target + column, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
            tl.store(target + column, (tile * by[:, None]).to(gradient.dtype.element_ty), mask=inside)
