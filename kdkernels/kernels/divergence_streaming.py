"""The divergence schedule for rows longer than a program's registers: one row per program, walked in tiles.

Walk 1 (forward) gathers the sums of exponentials, walk 2 (backward) f and H, walk 3 (forward) writes the gradient. With
a balanced loss H is 0 and walk 2 writes the gradient too. Each walk starts where the last one ended, so that of a row
that exceeds its share of L1 and L2 the part read last, which is still there, is re-read first. Tiles lie within the
row, without a mask; what is left of it beyond the last of them is one masked tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .divergence_row import (
    chosen_of,
    factors,
    hard_gradient,
    label_of,
    logarithm_of_ratio,
    row_of,
    soft_gradient,
    table_column,
    value_of,
)
from .tile import (
    LOG2_E,
    LOWEST,
    base_of,
    cross_entropy_of,
    exponent,
    lanes_of,
    load_logits,
    store_streamed,
    sum_over_lanes,
    sum_with,
)


class Sums(NamedTuple):
    """Softmax sums of a row or a part of one: the largest logits, sums relative to them, the student's at T = 1."""

    top: object
    total: object
    hard_total: object
    teacher_top: object
    teacher_total: object


@triton.jit
def _joined(sums, student, teacher, column, inside, c, HARD: tl.constexpr):
    """Walk 1 over one tile: the sums of the lanes, (LANES,) each, joined by it."""
    z = load_logits(student + column, inside, "evict_last")
    t = load_logits(teacher + column, inside, "evict_last")
    top = tl.maximum(sums.top, tl.max(z, axis=1))
    teacher_top = tl.maximum(sums.teacher_top, tl.max(t, axis=1))
    total = sum_with(sums.total, sums.top, top, z, c)
    hard_total = sums.hard_total
    if HARD:
        hard_total = sum_with(hard_total, sums.top, top, z, LOG2_E)
    return Sums(top, total, hard_total, teacher_top, sum_with(sums.teacher_total, sums.teacher_top, teacher_top, t, c))


@triton.jit
def gathered(student, teacher, first, last, c, HARD: tl.constexpr, LAYOUT: tl.constexpr):
    """Walk 1: the Sums of columns [first, last). LAYOUT: see `divergence_streaming`."""
    LANES: tl.constexpr = LAYOUT[0]
    STEP: tl.constexpr = LAYOUT[0] * LAYOUT[1]
    lane_column = lanes_of(LANES, LAYOUT[1], LAYOUT[2] > 1)
    lowest = tl.full((LANES,), LOWEST, tl.float32)
    nothing = tl.zeros((LANES,), tl.float32)
    sums = Sums(lowest, nothing, nothing, lowest, nothing)
    whole = first + (last - first) // STEP * STEP
    for start in range(first, whole, STEP):
        sums = _joined(sums, student, teacher, start + lane_column, None, c, HARD)
    if whole < last:
        column = whole + lane_column
        sums = _joined(sums, student, teacher, column, column < last, c, HARD)
    return merged(sums, c, HARD)


@triton.jit
def merged(sums, c, HARD: tl.constexpr):
    """One from those of lanes or parts, (N,) each."""
    top, teacher_top = tl.max(sums.top, axis=0), tl.max(sums.teacher_top, axis=0)
    total = sum_over_lanes(sums.total, sums.top, top, c)
    hard_total = total
    if HARD:
        hard_total = sum_over_lanes(sums.hard_total, sums.top, top, LOG2_E)
    return Sums(
        top, total, hard_total, teacher_top, sum_over_lanes(sums.teacher_total, sums.teacher_top, teacher_top, c)
    )


@triton.jit
def normalised(sums, c):
    return row_of(sums.top, sums.total, sums.teacher_top, sums.teacher_total, c)


class Logits(NamedTuple):
    """Pointers to a row: both sides, and where its gradient goes."""

    student: object
    teacher: object
    gradient: object


class Gradient(NamedTuple):
    """Of a row, what a tile of its gradient needs: H and soft / T, and for the cross-entropy the rest."""

    H: object
    factor: object
    hard_base: object
    hard_share: object
    label: object
    hard: object


@triton.jit
def _tile(logits, column, inside, c, found, gradient, scalars, table, sums, TERM: tl.constexpr, DO: tl.constexpr):
    """A tile of walk 2 or 3: (f, h) of the lanes, joined by it, and its gradient. DO: see `walked`."""
    z = load_logits(logits.student + column, inside, DO[5])
    t = load_logits(logits.teacher + column, inside, DO[5])
    x, teacher_x = exponent(z, c, found.base), exponent(t, c, found.teacher_base)
    q, p = tl.exp2(x) * found.share, tl.exp2(teacher_x) * found.teacher_share
    log_ratio = logarithm_of_ratio(x, teacher_x, found.shift)
    f, h = TERM(log_ratio, q, p, table_column(column, DO[6]), scalars.parameter, table)
    f_lanes, h_lanes = sums
    if DO[0]:
        f_lanes += tl.sum(f, axis=1)
        if not DO[2]:
            h_lanes += tl.sum(h, axis=1)
    if DO[1]:
        tile = soft_gradient(h, q, gradient.H, gradient.factor, DO[2])
        if DO[3]:
            hard = (gradient.hard_base, gradient.hard_share, column, gradient.label, gradient.hard)
            tile += hard_gradient(z, hard[0], hard[1], hard[2], hard[3], hard[4])
        store_streamed(logits.gradient + column, tile, inside)
    return f_lanes, h_lanes


@triton.jit
def walked(
    logits, first, last, c, found, gradient, scalars, table, TERM: tl.constexpr, DO: tl.constexpr, LAYOUT: tl.constexpr
):
    """Walk 2 or 3 over columns [first, last): the sums of f and h.

    DO: (sum f and h, write the gradient, BALANCED, HARD, from the last tile to the first, eviction policy, VECTORS).
    """
    LANES: tl.constexpr = LAYOUT[0]
    STEP: tl.constexpr = LAYOUT[0] * LAYOUT[1]
    lane_column = lanes_of(LANES, LAYOUT[1], LAYOUT[2] > 1)
    whole = first + (last - first) // STEP * STEP
    f_lanes = tl.zeros((LANES,), tl.float32)
    h_lanes = f_lanes
    column = whole + lane_column
    if DO[4]:
        if whole < last:
            f_lanes, h_lanes = _tile(
                logits, column, column < last, c, found, gradient, scalars, table, (f_lanes, h_lanes), TERM, DO
            )
        for done in range(STEP, whole - first + STEP, STEP):
            column = whole - done + lane_column
            f_lanes, h_lanes = _tile(
                logits, column, None, c, found, gradient, scalars, table, (f_lanes, h_lanes), TERM, DO
            )
    else:
        for start in range(first, whole, STEP):
            column = start + lane_column
            f_lanes, h_lanes = _tile(
                logits, column, None, c, found, gradient, scalars, table, (f_lanes, h_lanes), TERM, DO
            )
        if whole < last:
            column = whole + lane_column
            f_lanes, h_lanes = _tile(
                logits, column, column < last, c, found, gradient, scalars, table, (f_lanes, h_lanes), TERM, DO
            )
    return tl.sum(f_lanes, axis=0), tl.sum(h_lanes, axis=0)


@triton.jit
def zero_columns(target, first, last, LAYOUT: tl.constexpr):
    LANES: tl.constexpr = LAYOUT[0]
    WIDTH: tl.constexpr = LAYOUT[1]
    for start in range(first, last, LANES * WIDTH):
        column = start + lanes_of(LANES, WIDTH, LAYOUT[2] > 1)
        store_streamed(target + column, tl.zeros((LANES, WIDTH), tl.float32), column < last)


@triton.jit
def logits_of(tensors, strides, row, LAYOUT: tl.constexpr):
    UNIT: tl.constexpr = LAYOUT[2]
    student = tensors.student + row * (strides.student * UNIT)
    target = student
    if tensors.gradient is not None:
        target = tensors.gradient + row * (strides.gradient * UNIT)
    return Logits(student, tensors.teacher + row * (strides.teacher * UNIT), target)


@triton.jit
def _walk_row(
    logits, per_row, scalars, table, vocab, counted, TERM: tl.constexpr, WANTED: tl.constexpr, LAYOUT: tl.constexpr
):
    """The walks over one row that counts: counted = (row, soft, hard); WANTED: (gradient, BALANCED)."""
    HARD: tl.constexpr = per_row.labels is not None
    VECTORS: tl.constexpr = LAYOUT[2] > 1
    row, soft, hard = counted
    label = vocab  # no column
    chosen = soft
    if HARD:
        label = label_of(per_row.labels, row, vocab, hard)
        chosen = chosen_of(logits.student, label)
        tl.debug_barrier()
    c = scalars.inverse_temperature * LOG2_E
    sums = gathered(logits.student, logits.teacher, 0, vocab, c, HARD, LAYOUT)
    found = normalised(sums, c)
    cross_entropy = soft
    if HARD:
        cross_entropy = cross_entropy_of(chosen, sums.top, sums.hard_total)
    factor = soft * scalars.inverse_temperature
    hard_base, hard_share = base_of(sums.top, LOG2_E), 1.0 / sums.hard_total

    ONCE: tl.constexpr = WANTED[1] or not WANTED[0]  # walk 2 is the last
    gradient = Gradient(soft, factor, hard_base, hard_share, label, hard)
    EVICTION: tl.constexpr = "evict_first" if ONCE else "evict_last"
    DO: tl.constexpr = (True, WANTED[0] and WANTED[1], WANTED[1], HARD, True, EVICTION, VECTORS)
    f, H = walked(logits, 0, vocab, c, found, gradient, scalars, table, TERM, DO, LAYOUT)
    tl.store(per_row.value + row, value_of(soft, f, hard, cross_entropy))
    if not ONCE:
        gradient = Gradient(H, factor, hard_base, hard_share, label, hard)
        THEN: tl.constexpr = (False, True, False, HARD, False, "evict_first", VECTORS)
        walked(logits, 0, vocab, c, found, gradient, scalars, table, TERM, THEN, LAYOUT)


@triton.jit(do_not_specialize=["rows", "units"])
def divergence_streaming(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    rows,
    units,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Program i walks row i in tiles of LANES x WIDTH columns. Grid: (rows,).

    LAYOUT: (LANES, WIDTH, UNIT). The vocabulary (units) and the strides are in multiples of UNIT columns: WIDTH, where
    vectors of so many may be loaded anywhere, or 1, where none may.
    """
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    logits = logits_of(tensors, strides, row, LAYOUT)
    vocab = units * LAYOUT[2]
    if (soft != 0.0) | (hard != 0.0):
        WANTED: tl.constexpr = (tensors.gradient is not None, BALANCED)
        _walk_row(logits, per_row, scalars, table, vocab, (row, soft, hard), TERM, WANTED, LAYOUT)
    else:
        tl.store(per_row.value + row, 0.0)
        if tensors.gradient is not None:
            zero_columns(logits.gradient, 0, vocab, LAYOUT)
