"""The trilateral distances of rows: forward for rows that fit registers and for longer ones, one backward for all.

Backward has nothing to reduce: a row's ten statistics and its upstream gradient make it a map over the logits.
"""

import triton
import triton.language as tl

from .geometry_row import (
    Softmax,
    at_label,
    exponentials,
    joined,
    label_of,
    no_sums,
    over_lanes,
    probabilities,
    pull_of,
    rows_of,
    store_row,
    without,
)
from .tile import (
    LOG2_E,
    LOWEST,
    base_of,
    by_row,
    load_logits,
    load_values,
    places,
    store_streamed,
    sum_of_rows,
    sum_over_lanes,
    top_of_rows,
)
from .walk import walked


@triton.jit
def _over_tile(softmax):
    """A softmax of (ROWS,) rows, to be used against resident tiles."""
    return Softmax(by_row(softmax.peak), by_row(softmax.share))


@triton.jit
def _resident_softmax(z):
    peak = top_of_rows(z)
    return Softmax(peak, 1.0 / sum_of_rows(exponentials(z, by_row(peak))))


@triton.jit
def _without_label(z, softmax, column, label):
    """The probabilities of a tile, 0 in the label's column; of an undefined row NaN there too."""
    return without(exponentials(z, softmax.peak), column, label) * softmax.share


@triton.jit(do_not_specialize=["ignore_index", "rows", "units"])
def trilateral_resident(
    tensors, strides, per_row, ignore_index, rows, units, SQUARED: tl.constexpr, LAYOUT: tl.constexpr
):
    """Grid, tile and LAYOUT: as in divergence_resident.py."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    WIDTH: tl.constexpr = LAYOUT[0]
    row = tl.program_id(0).to(tl.int64) * LAYOUT[2] + tl.arange(0, LAYOUT[2])
    label = label_of(per_row.labels, row, rows, units * WIDTH, ignore_index)
    label_column = by_row(label.index.to(tl.int32))
    column = places(LAYOUT[3], LAYOUT[1], WIDTH)
    inside = by_row(label.known) & (column < units * WIDTH)
    held = rows_of(tensors, strides, row, label, WIDTH)
    z = load_logits(by_row(held[0]) + column, inside, "evict_first")
    t = load_logits(by_row(held[1]) + column, inside, "evict_first")
    m = tl.zeros_like(z)
    if MEAN:
        m = without(load_values(by_row(held[2]) + column, inside, "evict_last"), column, label_column)

    student = _resident_softmax(z)
    teacher = _resident_softmax(t)
    chosen = at_label(held, label, student, teacher, MEAN)
    q = _without_label(z, _over_tile(student), column, label_column)
    p = _without_label(t, _over_tile(teacher), column, label_column)
    sums = joined(no_sums(LAYOUT[2]), q, p, m, MEAN, sum_of_rows)
    store_row(per_row, row, row < rows, label, student, teacher, sums, chosen, SQUARED, MEAN)


@triton.jit
def _joined_by(total, old_peak, peak, z):
    kept = total * tl.exp2(base_of(old_peak, LOG2_E) - base_of(peak, LOG2_E))
    return kept + tl.sum(exponentials(z, peak[:, None]), axis=1)


@triton.jit
def _gather(state, held, column, inside, WANTED: tl.constexpr):
    """Walk 1: the largest logits and sums of exponentials of both sides' lanes, joined by a tile."""
    z_peak, z_total, t_peak, t_total = state
    z = load_logits(held[0] + column, inside, "evict_last")
    t = load_logits(held[1] + column, inside, "evict_last")
    z_top = tl.maximum(z_peak, tl.max(z, axis=1))
    t_top = tl.maximum(t_peak, tl.max(t, axis=1))
    return z_top, _joined_by(z_total, z_peak, z_top, z), t_top, _joined_by(t_total, t_peak, t_top, t)


@triton.jit
def _merged(total, lane_peak):
    peak = tl.max(lane_peak, axis=0)
    return Softmax(peak, 1.0 / sum_over_lanes(total, lane_peak, peak, LOG2_E))


@triton.jit
def _over_lane(tile):
    return tl.sum(tile, axis=1)


@triton.jit
def _add(sums, given, column, inside, MEAN: tl.constexpr):
    """Walk 2: the sums of the lanes, joined by a tile."""
    held, student, teacher, label_column = given
    z = load_logits(held[0] + column, inside, "evict_first")
    t = load_logits(held[1] + column, inside, "evict_first")
    m = tl.zeros_like(z)
    if MEAN:
        m = without(load_values(held[2] + column, inside, "evict_last"), column, label_column)
    q = _without_label(z, student, column, label_column)
    p = _without_label(t, teacher, column, label_column)
    return joined(sums, q, p, m, MEAN, _over_lane)


@triton.jit(do_not_specialize=["ignore_index", "rows", "units"])
def trilateral_streaming(
    tensors, strides, per_row, ignore_index, rows, units, SQUARED: tl.constexpr, LAYOUT: tl.constexpr
):
    """Program i walks row i forward for the softmaxes and backward for the sums. Of a row that is not read it walks
    nothing. Grid and LAYOUT: as in divergence_streaming.py."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    LANES: tl.constexpr = LAYOUT[0]
    vocab = units * LAYOUT[2]
    row = tl.program_id(0).to(tl.int64)
    label = label_of(per_row.labels, row, rows, vocab, ignore_index)
    length = tl.where(label.known, vocab, 0)
    held = rows_of(tensors, strides, row, label, LAYOUT[2])
    lowest, nothing = tl.full((LANES,), LOWEST, tl.float32), tl.zeros((LANES,), tl.float32)
    found = walked(_gather, (lowest, nothing, lowest, nothing), held, length, False, None, LAYOUT)
    student = _merged(found[1], found[0])
    teacher = _merged(found[3], found[2])
    given = (held, student, teacher, label.index.to(tl.int32))
    sums = walked(_add, no_sums(LANES), given, length, True, MEAN, LAYOUT)
    chosen = at_label(held, label, student, teacher, MEAN)
    store_row(per_row, row, row < rows, label, student, teacher, over_lanes(sums), chosen, SQUARED, MEAN)


@triton.jit
def _over_columns(softmax):
    """A softmax of (N,) rows, to be used against (N, K) tiles."""
    return Softmax(softmax.peak[:, None], softmax.share[:, None])


@triton.jit(do_not_specialize=["ignore_index", "rows", "units"])
def trilateral_backward(
    tensors,
    strides,
    per_row,
    ignore_index,
    rows,
    units,
    SQUARED: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Program (i, j) takes ROWS rows and STEPS tiles of BLOCK columns. Grid: (ceil(rows / ROWS), ceil(vocab / (BLOCK
    STEPS))). The vocabulary (units) and the strides are in multiples of UNIT columns."""
    MEAN: tl.constexpr = tensors.class_mean is not None
    vocab = units * UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    label = label_of(per_row.labels, row, rows, vocab, ignore_index)
    label_column = label.index.to(tl.int32)[:, None]
    filler = label.filler[:, None]
    known = label.known[:, None]
    held = rows_of(tensors, strides, row, label, UNIT)
    student_row = held[0][:, None]
    teacher_row = held[1][:, None]
    target = (tensors.gradient + row * (strides.gradient * UNIT))[:, None]
    student, teacher, pull = pull_of(held[0], per_row, row, label, SQUARED, MEAN)
    average = pull.average[:, None]
    first = tl.program_id(1) * (BLOCK * STEPS)
    for start in range(first, tl.minimum(first + BLOCK * STEPS, vocab), BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = known & (column < vocab)
        q = probabilities(load_logits(student_row + column, inside, "evict_first"), _over_columns(student))
        p = probabilities(load_logits(teacher_row + column, inside, "evict_first"), _over_columns(teacher))
        pulled = pull.label[:, None] * q + pull.teacher[:, None] * (q - p)
        if MEAN:
            m = load_values(held[2][:, None] + column, inside, "evict_last")
            pulled += pull.mean[:, None] * (q - m)
        pulled = tl.where(column == label_column, pull.at_label[:, None], pulled - pull.reference[:, None])
        gradient = q * (pulled - average)
        counted = (row < rows)[:, None] & (column < vocab)
        store_streamed(target + column, tl.where(known, gradient, filler), counted)
