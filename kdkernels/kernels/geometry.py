"""The trilateral distances of rows: forward for rows that fit registers and for longer ones, one backward for all.

Backward has nothing to reduce: a row's ten statistics and its upstream gradient make it a map over the logits.
"""

import triton
import triton.language as tl

from .geometry_row import (
    Softmax,
    at_label,
    joined,
    label_of,
    no_sums,
    over_lanes,
    probabilities,
    pull_of,
    store_row,
    without,
)
from .tile import (
    LOWEST,
    lanes_of,
    load_logits,
    load_values,
    peak_with,
    store_streamed,
    total_of,
    total_over_lanes,
    total_with,
)


@triton.jit
def _over_columns(softmax):
    """A softmax of (N,) rows, to be used against (N, K) tiles."""
    return Softmax(softmax.peak[:, None], softmax.share[:, None])


@triton.jit
def _resident_softmax(z):
    peak = tl.max(z, axis=1)
    return Softmax(peak, 1.0 / total_of(peak, z, 1.0))


@triton.jit
def _without_label(z, softmax, column, label):
    """The probabilities of a tile, 0 in the label's column; of an undefined row NaN there too."""
    return without(tl.exp(z - softmax.peak), column, label) * softmax.share


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def trilateral_resident(
    tensors,
    strides,
    per_row,
    ignore_index,
    rows,
    vocab,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program i holds ROWS rows from i ROWS on as a tile (ROWS, BLOCK), BLOCK >= vocab. Grid: (ceil(rows / ROWS),)."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label = label_of(per_row.labels, row, rows, vocab, ignore_index)
    label_column = label.index.to(tl.int32)[:, None]
    column = tl.broadcast_to(tl.arange(0, BLOCK)[None, :], (ROWS, BLOCK))
    inside = label.known[:, None] & (column < vocab)
    z = load_logits((tensors.student + row * strides.student)[:, None] + column, inside, "evict_first")
    t = load_logits((tensors.teacher + row * strides.teacher)[:, None] + column, inside, "evict_first")
    m = tl.zeros((ROWS, BLOCK), tl.float32)
    if MEAN:
        mean = tensors.class_mean + label.index * strides.class_mean
        m = without(load_values(mean[:, None] + column, inside, "evict_last"), column, label_column)

    student = _resident_softmax(z)
    teacher = _resident_softmax(t)
    chosen = at_label(tensors, strides, row, label, student, teacher)
    q = _without_label(z, _over_columns(student), column, label_column)
    p = _without_label(t, _over_columns(teacher), column, label_column)
    sums = joined(no_sums(ROWS), q, p, m, MEAN)
    store_row(per_row, row, row < rows, label, student, teacher, sums, chosen, SQUARED, MEAN)


@triton.jit
def _softmaxes(student, teacher, vocab, LANES: tl.constexpr, WIDTH: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Walk 1: peak and share of the student and of the teacher."""
    z_peak = tl.full((LANES,), LOWEST, tl.float32)
    t_peak = z_peak
    z_total = tl.zeros((LANES,), tl.float32)
    t_total = z_total
    for start in range(0, vocab, LANES * WIDTH):
        column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
        z = load_logits(student + column, column < vocab, "evict_last")
        t = load_logits(teacher + column, column < vocab, "evict_last")
        peak = peak_with(z_peak, z)
        z_total = total_with(z_total, z_peak, peak, z, 1.0)
        z_peak = peak
        peak = peak_with(t_peak, t)
        t_total = total_with(t_total, t_peak, peak, t, 1.0)
        t_peak = peak
    peak = tl.max(z_peak, axis=0)
    t_row_peak = tl.max(t_peak, axis=0)
    z_row = Softmax(peak, 1.0 / total_over_lanes(z_total, z_peak, peak, 1.0))
    return z_row, Softmax(t_row_peak, 1.0 / total_over_lanes(t_total, t_peak, t_row_peak, 1.0))


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def trilateral_streaming(
    tensors,
    strides,
    per_row,
    ignore_index,
    rows,
    vocab,
    SQUARED: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Program i walks row i in tiles of LANES x WIDTH columns, forward for the softmaxes and backward, the part read
    last first, for the sums. Of a row that is not read it walks nothing. Grid: (rows,)."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    STEP: tl.constexpr = LANES * WIDTH
    row = tl.program_id(0).to(tl.int64)
    label = label_of(per_row.labels, row, rows, vocab, ignore_index)
    length = tl.where(label.known, vocab, 0)
    label_column = label.index.to(tl.int32)
    student_row = tensors.student + row * strides.student
    teacher_row = tensors.teacher + row * strides.teacher
    student, teacher = _softmaxes(student_row, teacher_row, length, LANES, WIDTH, CONTIGUOUS)
    sums = no_sums(LANES)
    last = (length - 1) // STEP * STEP
    for walked in range(0, length, STEP):
        column = last - walked + lanes_of(LANES, WIDTH, CONTIGUOUS)
        z = load_logits(student_row + column, column < vocab, "evict_first")
        t = load_logits(teacher_row + column, column < vocab, "evict_first")
        m = tl.zeros((LANES, WIDTH), tl.float32)
        if MEAN:
            mean = tensors.class_mean + label.index * strides.class_mean
            m = without(load_values(mean + column, column < vocab, "evict_last"), column, label_column)
        q = _without_label(z, student, column, label_column)
        p = _without_label(t, teacher, column, label_column)
        sums = joined(sums, q, p, m, MEAN)
    chosen = at_label(tensors, strides, row, label, student, teacher)
    store_row(per_row, row, row < rows, label, student, teacher, over_lanes(sums), chosen, SQUARED, MEAN)


@triton.jit(do_not_specialize=["ignore_index", "rows"])
def trilateral_backward(
    tensors,
    strides,
    per_row,
    ignore_index,
    rows,
    vocab,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Program (i, j) takes ROWS rows and STEPS tiles of BLOCK columns. Grid: (ceil(rows / ROWS), ceil(vocab / (BLOCK
    STEPS)))."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label = label_of(per_row.labels, row, rows, vocab, ignore_index)
    label_column = label.index.to(tl.int32)[:, None]
    filler = label.filler[:, None]
    known = label.known[:, None]
    student_row = (tensors.student + row * strides.student)[:, None]
    teacher_row = (tensors.teacher + row * strides.teacher)[:, None]
    target = (tensors.gradient + row * strides.gradient)[:, None]
    student, teacher, pull = pull_of(tensors, strides, per_row, row, label, SQUARED, MEAN)
    average = pull.average[:, None]
    first = tl.program_id(1) * (BLOCK * STEPS)
    for start in range(first, tl.minimum(first + BLOCK * STEPS, vocab), BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = known & (column < vocab)
        q = probabilities(load_logits(student_row + column, inside, "evict_first"), _over_columns(student))
        p = probabilities(load_logits(teacher_row + column, inside, "evict_first"), _over_columns(teacher))
        pulled = pull.label[:, None] * q + pull.teacher[:, None] * (q - p)
        if MEAN:
            mean = (tensors.class_mean + label.index * strides.class_mean)[:, None]
            m = load_values(mean + column, inside, "evict_last")
            pulled += pull.mean[:, None] * (q - m)
        pulled = tl.where(column == label_column, pull.at_label[:, None], pulled - pull.reference[:, None])
        gradient = q * (pulled - average)
        counted = (row < rows)[:, None] & (column < vocab)
        store_streamed(target + column, tl.where(known, gradient, filler), counted)
