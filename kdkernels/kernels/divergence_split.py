"""The divergence schedule for few long rows: each row is split into parts of their own programs, in three launches.

A row per program leaves most of a GPU idle where there are fewer rows than multiprocessors. Here the parts exchange
what the streaming form keeps in registers through PARTIALS numbers per part in memory: launch 1 writes the parts'
softmax sums, launch 2 their f and H (and the gradient of a balanced loss), launch 3 the values and the gradient. Every
program merges all parts of its row in the same order, so that they agree to the bit.
"""

import triton
import triton.language as tl

from . import config
from .divergence_row import chosen_of, factors, label_of, value_of
from .divergence_streaming import Gradient, Sums, gathered, logits_of, merged, normalised, walked, zero_columns
from .tile import LOG2_E, LOWEST, base_of, cross_entropy_of

# Per part: the student's peak, total and total at temperature 1, the teacher's peak and total, f, h, the label's logit.
PARTIALS = tl.constexpr(config.PARTIALS)


@triton.jit
def _part(vocab, SPAN: tl.constexpr):
    """The columns [first, last) of this program."""
    first = tl.program_id(1) * SPAN
    return first, tl.minimum(first + SPAN, vocab)


@triton.jit
def _over_parts(partials, row, which, parts, other, PARTS: tl.constexpr):
    """One of the numbers of all parts of a row, (PARTS,)."""
    part = tl.arange(0, PARTS)
    return tl.load(partials + (row * parts + part) * PARTIALS + which, mask=part < parts, other=other)


@triton.jit
def _sums_of_row(partials, row, parts, c, HARD: tl.constexpr, PARTS: tl.constexpr):
    """The Sums of a row from those of all its parts."""
    tops = _over_parts(partials, row, 0, parts, LOWEST, PARTS)
    totals = _over_parts(partials, row, 1, parts, 0.0, PARTS)
    hard_totals = totals
    if HARD:
        hard_totals = _over_parts(partials, row, 2, parts, 0.0, PARTS)
    teacher_tops = _over_parts(partials, row, 3, parts, LOWEST, PARTS)
    teacher_totals = _over_parts(partials, row, 4, parts, 0.0, PARTS)
    return merged(Sums(tops, totals, hard_totals, teacher_tops, teacher_totals), c, HARD)


@triton.jit
def split_sums(tensors, strides, per_row, scalars, partials, shape, SPAN: tl.constexpr, LAYOUT: tl.constexpr):
    """Launch 1: the softmax sums of part j of row i. Grid: (rows, parts).

    shape: (rows, units, parts); LAYOUT as in `divergence_streaming`.
    """
    HARD: tl.constexpr = per_row.labels is not None
    rows, units, parts = shape
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    if (soft != 0.0) | (hard != 0.0):
        first, last = _part(units * LAYOUT[2], SPAN)
        logits = logits_of(tensors, strides, row, LAYOUT)
        c = scalars.inverse_temperature * LOG2_E
        found = gathered(logits.student, logits.teacher, first, last, c, HARD, LAYOUT)
        target = partials + (row * parts + tl.program_id(1)) * PARTIALS
        for which in tl.static_range(5):
            tl.store(target + which, found[which])
        if HARD:
            # Now: the gradient of a later launch may take the student's place.
            tl.store(target + 7, chosen_of(logits.student, label_of(per_row.labels, row, units * LAYOUT[2], hard)))


@triton.jit
def _gradient_of(sums, H, soft, hard, label, scalars):
    return Gradient(
        H, soft * scalars.inverse_temperature, base_of(sums.top, LOG2_E), 1.0 / sums.hard_total, label, hard
    )


@triton.jit
def split_terms(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    partials,
    shape,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Launch 2: f and h of part j of row i, and the gradient of a balanced loss. Grid: (rows, parts)."""
    HARD: tl.constexpr = per_row.labels is not None
    WRITES: tl.constexpr = tensors.gradient is not None and BALANCED
    rows, units, parts = shape
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    first, last = _part(units * LAYOUT[2], SPAN)
    logits = logits_of(tensors, strides, row, LAYOUT)
    if (soft != 0.0) | (hard != 0.0):
        c = scalars.inverse_temperature * LOG2_E
        sums = _sums_of_row(partials, row, parts, c, HARD, PARTS)
        label = units * LAYOUT[2]  # no column
        if HARD:
            label = label_of(per_row.labels, row, units * LAYOUT[2], hard)
        gradient = _gradient_of(sums, soft, soft, hard, label, scalars)
        DO: tl.constexpr = (True, WRITES, BALANCED, HARD, False, "evict_first", LAYOUT[2] > 1)
        f, h = walked(logits, first, last, c, normalised(sums, c), gradient, scalars, table, TERM, DO, LAYOUT)
        mine = partials + (row * parts + tl.program_id(1)) * PARTIALS
        tl.store(mine + 5, f)
        tl.store(mine + 6, h)
    elif WRITES:
        zero_columns(logits.gradient, first, last, LAYOUT)


@triton.jit
def split_finish(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    partials,
    shape,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Launch 3: row i's value, and part j's gradient unless launch 2 wrote it. Grid: (rows, parts), or (rows, 1)."""
    HARD: tl.constexpr = per_row.labels is not None
    WRITES: tl.constexpr = tensors.gradient is not None and not BALANCED
    rows, units, parts = shape
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    first, last = _part(units * LAYOUT[2], SPAN)
    logits = logits_of(tensors, strides, row, LAYOUT)
    value = 0.0
    if (soft != 0.0) | (hard != 0.0):
        c = scalars.inverse_temperature * LOG2_E
        sums = _sums_of_row(partials, row, parts, c, HARD, PARTS)
        label = units * LAYOUT[2]  # no column
        cross_entropy = soft
        if HARD:
            label = label_of(per_row.labels, row, units * LAYOUT[2], hard)
            chosen = tl.load(partials + row * parts * PARTIALS + 7)
            cross_entropy = cross_entropy_of(chosen, sums.top, sums.hard_total)
        value = value_of(soft, tl.sum(_over_parts(partials, row, 5, parts, 0.0, PARTS), axis=0), hard, cross_entropy)
        if WRITES:
            H = tl.sum(_over_parts(partials, row, 6, parts, 0.0, PARTS), axis=0)
            gradient = _gradient_of(sums, H, soft, hard, label, scalars)
            DO: tl.constexpr = (False, True, BALANCED, HARD, False, "evict_first", LAYOUT[2] > 1)
            walked(logits, first, last, c, normalised(sums, c), gradient, scalars, table, TERM, DO, LAYOUT)
    elif WRITES:
        zero_columns(logits.gradient, first, last, LAYOUT)
    if tl.program_id(1) == 0:
        tl.store(per_row.value + row, value)
