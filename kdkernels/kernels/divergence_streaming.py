"""The divergence schedule for rows longer than a program's registers: one row per program, walked in tiles.

Walk 1 (forward) gathers the normalisers, walk 2 (backward) f and H, walk 3 (forward) writes the gradient. With a
balanced loss H is 0 and walk 2 writes the gradient too. Each walk starts where the last one ended, so that of a row
that exceeds its share of L1 and L2 the part read last, which is still there, is re-read first.
"""

import triton
import triton.language as tl

from .divergence_row import chosen_of, factors, hard_gradient, label_of, soft_gradient, table_column, value_of
from .tile import (
    LOWEST,
    lanes_of,
    load_logits,
    log_softmax,
    logarithms,
    normaliser,
    peak_with,
    store_streamed,
    total_over_lanes,
    total_with,
)


@triton.jit
def gathered(
    student,
    teacher,
    first,
    last,
    inverse_temperature,
    HARD: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Of columns [first, last): the student's peak, total and total at temperature 1, the teacher's peak and total."""
    z_peak = tl.full((LANES,), LOWEST, tl.float32)
    t_peak = z_peak
    z_total = tl.zeros((LANES,), tl.float32)
    hard_total = z_total
    t_total = z_total
    for start in range(first, last, LANES * WIDTH):
        column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
        z = load_logits(student + column, column < last, "evict_last")
        t = load_logits(teacher + column, column < last, "evict_last")
        peak = peak_with(z_peak, z)
        z_total = total_with(z_total, z_peak, peak, z, inverse_temperature)
        if HARD:
            hard_total = total_with(hard_total, z_peak, peak, z, 1.0)
        z_peak = peak
        peak = peak_with(t_peak, t)
        t_total = total_with(t_total, t_peak, peak, t, inverse_temperature)
        t_peak = peak
    z_most = tl.max(z_peak, axis=0)
    z_sum = total_over_lanes(z_total, z_peak, z_most, inverse_temperature)
    hard_sum = z_sum
    if HARD:
        hard_sum = total_over_lanes(hard_total, z_peak, z_most, 1.0)
    t_most = tl.max(t_peak, axis=0)
    return z_most, z_sum, hard_sum, t_most, total_over_lanes(t_total, t_peak, t_most, inverse_temperature)


@triton.jit
def _normalisers(
    student,
    teacher,
    vocab,
    inverse_temperature,
    HARD: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Walk 1: the normalisers of the student, of the student at temperature 1 and of the teacher."""
    found = gathered(student, teacher, 0, vocab, inverse_temperature, HARD, LANES, WIDTH, CONTIGUOUS)
    return normaliser(found[0], found[1]), normaliser(found[0], found[2]), normaliser(found[3], found[4])


@triton.jit
def term_of(
    student,
    teacher,
    column,
    vocab,
    normalisers,
    scalars,
    table,
    TERM: tl.constexpr,
    EVICTION: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """(f, h, q, z) of one tile."""
    z = load_logits(student + column, column < vocab, EVICTION)
    t = load_logits(teacher + column, column < vocab, EVICTION)
    log_q, log_p, log_ratio = logarithms(z, t, normalisers[0], normalisers[2], scalars.inverse_temperature)
    q = tl.exp(log_q)
    f, h = TERM(log_ratio, q, tl.exp(log_p), table_column(column, CONTIGUOUS), scalars.parameter, table)
    return f, h, q, z


@triton.jit
def store_gradient(
    target, column, vocab, h, q, H, z, factor, hard_row, label, hard, BALANCED: tl.constexpr, HARD: tl.constexpr
):
    gradient = soft_gradient(h, q, H, factor, BALANCED)
    if HARD:
        gradient += hard_gradient(z, hard_row, column, label, hard)
    store_streamed(target + column, gradient, column < vocab)


@triton.jit
def zero_columns(target, first, last, LANES: tl.constexpr, WIDTH: tl.constexpr, CONTIGUOUS: tl.constexpr):
    for start in range(first, last, LANES * WIDTH):
        column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
        store_streamed(target + column, tl.zeros((LANES, WIDTH), tl.float32), column < last)


@triton.jit
def _walk_row(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    vocab,
    counted,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """The walks over one row that counts: counted = (row, soft, hard)."""
    STEP: tl.constexpr = LANES * WIDTH
    HARD: tl.constexpr = per_row.labels is not None
    GRADIENT: tl.constexpr = tensors.gradient is not None
    row, soft, hard = counted
    student = tensors.student + row * strides.student
    teacher = tensors.teacher + row * strides.teacher
    target = student
    if GRADIENT:
        target = tensors.gradient + row * strides.gradient
    inverse_temperature = scalars.inverse_temperature
    label = -1
    cross_entropy = 0.0
    if HARD:
        label = label_of(per_row.labels, row, vocab, hard)
        chosen = chosen_of(student, label)
        tl.debug_barrier()
    found = _normalisers(student, teacher, vocab, inverse_temperature, HARD, LANES, WIDTH, CONTIGUOUS)
    if HARD:
        cross_entropy = -log_softmax(chosen, found[1], 1.0)
    factor = soft * inverse_temperature

    LAST: tl.constexpr = "evict_first" if BALANCED or not GRADIENT else "evict_last"
    f_lanes = tl.zeros((LANES,), tl.float32)
    h_lanes = f_lanes
    last = (vocab - 1) // STEP * STEP
    for walked in range(0, vocab, STEP):
        column = last - walked + lanes_of(LANES, WIDTH, CONTIGUOUS)
        f, h, q, z = term_of(student, teacher, column, vocab, found, scalars, table, TERM, LAST, CONTIGUOUS)
        f_lanes += tl.sum(f, axis=1)
        if GRADIENT and BALANCED:
            store_gradient(target, column, vocab, h, q, 0.0, z, factor, found[1], label, hard, BALANCED, HARD)
        elif GRADIENT:
            h_lanes += tl.sum(h, axis=1)
    tl.store(per_row.value + row, value_of(soft, tl.sum(f_lanes, axis=0), hard, cross_entropy))
    if GRADIENT and not BALANCED:
        H = tl.sum(h_lanes, axis=0)
        for start in range(0, vocab, STEP):
            column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
            f, h, q, z = term_of(
                student, teacher, column, vocab, found, scalars, table, TERM, "evict_first", CONTIGUOUS
            )
            store_gradient(target, column, vocab, h, q, H, z, factor, found[1], label, hard, BALANCED, HARD)


@triton.jit(do_not_specialize=["rows"])
def divergence_streaming(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    rows,
    vocab,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Program i walks row i in tiles of LANES x WIDTH columns. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    soft, hard = factors(per_row, scalars, row, row < rows)
    if (soft != 0.0) | (hard != 0.0):
        counted = (row, soft, hard)
        _walk_row(tensors, strides, per_row, scalars, table, vocab, counted, TERM, BALANCED, LANES, WIDTH, CONTIGUOUS)
    else:
        tl.store(per_row.value + row, 0.0)
        if tensors.gradient is not None:
            zero_columns(tensors.gradient + row * strides.gradient, 0, vocab, LANES, WIDTH, CONTIGUOUS)
