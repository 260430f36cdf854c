"""The divergence schedule for few long rows: each row is split into parts of their own programs, in three launches.

A row per program leaves most of a GPU idle where there are fewer rows than multiprocessors. Here the parts exchange
what the streaming form keeps in registers through PARTIALS numbers per part in memory: launch 1 writes the parts'
softmax sums, launch 2 their f and H (and the gradient of a balanced loss), launch 3 the values and the gradient. Every
program merges all parts of its row in the same order, so that they agree to the bit.
"""

import triton
import triton.language as tl

from .divergence_row import chosen_of, factors, label_of, value_of
from .divergence_streaming import gathered, store_gradient, term_of, zero_columns
from .tile import lanes_of, log_softmax, normaliser

# Per part: the student's peak, total and total at temperature 1, the teacher's peak and total, f, h, the label's logit.
PARTIALS = tl.constexpr(8)


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
def _normalisers(partials, row, parts, inverse_temperature, HARD: tl.constexpr, PARTS: tl.constexpr):
    """Of the student, of the student at temperature 1, and of the teacher, from all parts of a row."""
    lowest = -3.4028234663852886e38
    z_peaks = _over_parts(partials, row, 0, parts, lowest, PARTS)
    z_peak = tl.max(z_peaks, axis=0)
    z_totals = _over_parts(partials, row, 1, parts, 0.0, PARTS)
    student = normaliser(z_peak, tl.sum(z_totals * tl.exp((z_peaks - z_peak) * inverse_temperature), axis=0))
    hard = student
    if HARD:
        hard_totals = _over_parts(partials, row, 2, parts, 0.0, PARTS)
        hard = normaliser(z_peak, tl.sum(hard_totals * tl.exp(z_peaks - z_peak), axis=0))
    t_peaks = _over_parts(partials, row, 3, parts, lowest, PARTS)
    t_peak = tl.max(t_peaks, axis=0)
    t_totals = _over_parts(partials, row, 4, parts, 0.0, PARTS)
    teacher = normaliser(t_peak, tl.sum(t_totals * tl.exp((t_peaks - t_peak) * inverse_temperature), axis=0))
    return student, hard, teacher


@triton.jit
def split_sums(tensors, strides, per_row, scalars, partials, shape, SPAN: tl.constexpr, LAYOUT: tl.constexpr):
    """Launch 1: the softmax sums of part j of row i. Grid: (rows, parts).

    shape: (rows, vocab, parts); LAYOUT: (LANES, WIDTH, CONTIGUOUS).
    """
    LANES: tl.constexpr = LAYOUT[0]
    WIDTH: tl.constexpr = LAYOUT[1]
    CONTIGUOUS: tl.constexpr = LAYOUT[2]
    rows, vocab, parts = shape
    HARD: tl.constexpr = per_row.labels is not None
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    if (soft != 0.0) | (hard != 0.0):
        first, last = _part(vocab, SPAN)
        student = tensors.student + row * strides.student
        teacher = tensors.teacher + row * strides.teacher
        found = gathered(student, teacher, first, last, scalars.inverse_temperature, HARD, LANES, WIDTH, CONTIGUOUS)
        target = partials + (row * parts + tl.program_id(1)) * PARTIALS
        for which in tl.static_range(5):
            tl.store(target + which, found[which])
        if HARD:
            # Now: the gradient of a later launch may take the student's place.
            tl.store(target + 7, chosen_of(student, label_of(per_row.labels, row, vocab, hard)))


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
    LANES: tl.constexpr = LAYOUT[0]
    WIDTH: tl.constexpr = LAYOUT[1]
    CONTIGUOUS: tl.constexpr = LAYOUT[2]
    HARD: tl.constexpr = per_row.labels is not None
    WRITES: tl.constexpr = tensors.gradient is not None and BALANCED
    rows, vocab, parts = shape
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    first, last = _part(vocab, SPAN)
    student = tensors.student + row * strides.student
    teacher = tensors.teacher + row * strides.teacher
    target = student
    if WRITES:
        target = tensors.gradient + row * strides.gradient
    if (soft != 0.0) | (hard != 0.0):
        found = _normalisers(partials, row, parts, scalars.inverse_temperature, HARD, PARTS)
        label = -1
        if HARD:
            label = label_of(per_row.labels, row, vocab, hard)
        factor = soft * scalars.inverse_temperature
        f_lanes = tl.zeros((LANES,), tl.float32)
        h_lanes = f_lanes
        for start in range(first, last, LANES * WIDTH):
            column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
            f, h, q, z = term_of(
                student, teacher, column, vocab, found, scalars, table, TERM, "evict_first", CONTIGUOUS
            )
            f_lanes += tl.sum(f, axis=1)
            h_lanes += tl.sum(h, axis=1)
            if WRITES:
                store_gradient(target, column, vocab, h, q, 0.0, z, factor, found[1], label, hard, BALANCED, HARD)
        mine = partials + (row * parts + tl.program_id(1)) * PARTIALS
        tl.store(mine + 5, tl.sum(f_lanes, axis=0))
        tl.store(mine + 6, tl.sum(h_lanes, axis=0))
    elif WRITES:
        zero_columns(target, first, last, LANES, WIDTH, CONTIGUOUS)


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
    LANES: tl.constexpr = LAYOUT[0]
    WIDTH: tl.constexpr = LAYOUT[1]
    CONTIGUOUS: tl.constexpr = LAYOUT[2]
    HARD: tl.constexpr = per_row.labels is not None
    WRITES: tl.constexpr = tensors.gradient is not None and not BALANCED
    rows, vocab, parts = shape
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    first, last = _part(vocab, SPAN)
    student = tensors.student + row * strides.student
    teacher = tensors.teacher + row * strides.teacher
    target = student
    if WRITES:
        target = tensors.gradient + row * strides.gradient
    value = 0.0
    if (soft != 0.0) | (hard != 0.0):
        found = _normalisers(partials, row, parts, scalars.inverse_temperature, HARD, PARTS)
        label = -1
        cross_entropy = 0.0
        if HARD:
            label = label_of(per_row.labels, row, vocab, hard)
            cross_entropy = -log_softmax(tl.load(partials + row * parts * PARTIALS + 7), found[1], 1.0)
        value = value_of(soft, tl.sum(_over_parts(partials, row, 5, parts, 0.0, PARTS), axis=0), hard, cross_entropy)
        if WRITES:
            H = tl.sum(_over_parts(partials, row, 6, parts, 0.0, PARTS), axis=0)
            factor = soft * scalars.inverse_temperature
            for start in range(first, last, LANES * WIDTH):
                column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
                f, h, q, z = term_of(
                    student, teacher, column, vocab, found, scalars, table, TERM, "evict_first", CONTIGUOUS
                )
                store_gradient(target, column, vocab, h, q, H, z, factor, found[1], label, hard, BALANCED, HARD)
    elif WRITES:
        zero_columns(target, first, last, LANES, WIDTH, CONTIGUOUS)
    if tl.program_id(1) == 0:
        tl.store(per_row.value + row, value)
