"""The divergence schedule for rows that fit a program's registers: every logit is read once."""

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
    base_of,
    by_row,
    cross_entropy_of,
    exponent,
    load_logits,
    places,
    store_streamed,
    sum_of_rows,
    top_of_rows,
)


@triton.jit(do_not_specialize=["rows", "units"])
def divergence_resident(
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
    """Program i holds ROWS rows from i ROWS on as a tile (PARTS, ROWS, LANES, WIDTH). Grid: (ceil(rows / ROWS),).

    LAYOUT: (UNIT, PARTS, ROWS, LANES). The vocabulary (units) and the strides are in multiples of UNIT columns, the
    width of a vector that may be loaded anywhere.
    """
    WIDTH: tl.constexpr = LAYOUT[0]
    ROWS: tl.constexpr = LAYOUT[2]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    soft, hard = factors(per_row, scalars, row, row < rows)
    column = places(LAYOUT[3], LAYOUT[1], WIDTH)
    in_row = column < units * WIDTH
    inside = by_row((soft != 0.0) | (hard != 0.0)) & in_row
    z = load_logits(tensors.student + (by_row(row * (strides.student * WIDTH)) + column), inside, "evict_first")
    t = load_logits(tensors.teacher + (by_row(row * (strides.teacher * WIDTH)) + column), inside, "evict_first")
    if per_row.labels is not None:
        label = label_of(per_row.labels, row, units * WIDTH, hard)
        chosen = chosen_of(tensors.student + row * (strides.student * WIDTH), label)
    if tensors.gradient is not None:
        # The gradient may take the student's place, and a small tile is held by several warps at once, of which one
        # stores. No store before all have read.
        tl.debug_barrier()

    c = scalars.inverse_temperature * LOG2_E
    top, teacher_top = top_of_rows(z), top_of_rows(t)
    x, teacher_x = exponent(z, c, by_row(base_of(top, c))), exponent(t, c, by_row(base_of(teacher_top, c)))
    q, p = tl.exp2(x), tl.exp2(teacher_x)
    found = row_of(top, sum_of_rows(q), teacher_top, sum_of_rows(p), c)
    q *= by_row(found.share)
    p *= by_row(found.teacher_share)
    log_ratio = logarithm_of_ratio(x, teacher_x, by_row(found.shift))
    cross_entropy = tl.zeros((ROWS,), tl.float32)
    if per_row.labels is not None:
        hard_base = base_of(top, LOG2_E)
        hard_total = sum_of_rows(tl.exp2(exponent(z, LOG2_E, by_row(hard_base))))
        cross_entropy = cross_entropy_of(chosen, top, hard_total)

    f, h = TERM(log_ratio, q, p, table_column(column, WIDTH > 1), scalars.parameter, table)
    tl.store(per_row.value + row, value_of(soft, sum_of_rows(f), hard, cross_entropy), mask=row < rows)
    if tensors.gradient is not None:
        H = soft if BALANCED else sum_of_rows(h)
        gradient = soft_gradient(h, q, by_row(H), by_row(soft * scalars.inverse_temperature), BALANCED)
        if per_row.labels is not None:
            share = by_row(1.0 / hard_total)
            gradient += hard_gradient(z, by_row(hard_base), share, column, by_row(label.to(tl.int32)), by_row(hard))
        target = tensors.gradient + (by_row(row * (strides.gradient * WIDTH)) + column)
        store_streamed(target, gradient, by_row(row < rows) & in_row)
