"""The divergence schedule for rows that fit a program's registers: every logit is read once."""

import triton
import triton.language as tl

from .divergence_row import chosen_of, factors, hard_gradient, label_of, soft_gradient, table_column, value_of
from .tile import load_logits, log_softmax, logarithms, normaliser, over_columns, store_streamed, total_of


@triton.jit(do_not_specialize=["rows"])
def divergence_resident(
    tensors,
    strides,
    per_row,
    scalars,
    table,
    rows,
    vocab,
    TERM: tl.constexpr,
    BALANCED: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program i holds ROWS rows from i ROWS on as a tile (ROWS, BLOCK), BLOCK >= vocab. Grid: (ceil(rows / ROWS),)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    soft, hard = factors(per_row, scalars, row, row < rows)
    column = tl.broadcast_to(tl.arange(0, BLOCK)[None, :], (ROWS, BLOCK))
    inside = ((soft != 0.0) | (hard != 0.0))[:, None] & (column < vocab)
    student = tensors.student + row * strides.student
    teacher = tensors.teacher + row * strides.teacher
    z = load_logits(student[:, None] + column, inside, "evict_first")
    t = load_logits(teacher[:, None] + column, inside, "evict_first")
    if per_row.labels is not None:
        label = label_of(per_row.labels, row, vocab, hard)
        chosen = chosen_of(student, label)
    if tensors.gradient is not None:
        # The gradient may take the student's place, and a small tile is held by several warps at once, of which one
        # stores. No store before all have read.
        tl.debug_barrier()

    inverse_temperature = scalars.inverse_temperature
    peak = tl.max(z, axis=1)
    teacher_peak = tl.max(t, axis=1)
    student_row = over_columns(normaliser(peak, total_of(peak, z, inverse_temperature)))
    teacher_row = over_columns(normaliser(teacher_peak, total_of(teacher_peak, t, inverse_temperature)))
    cross_entropy = tl.zeros((ROWS,), tl.float32)
    if per_row.labels is not None:
        hard_row = normaliser(peak, total_of(peak, z, 1.0))
        cross_entropy = -log_softmax(chosen, hard_row, 1.0)

    log_q, log_p, log_ratio = logarithms(z, t, student_row, teacher_row, inverse_temperature)
    q = tl.exp(log_q)
    f, h = TERM(log_ratio, q, tl.exp(log_p), table_column(column, CONTIGUOUS), scalars.parameter, table)
    tl.store(per_row.value + row, value_of(soft, tl.sum(f, axis=1), hard, cross_entropy), mask=row < rows)
    if tensors.gradient is not None:
        H = soft if BALANCED else tl.sum(h, axis=1)
        gradient = soft_gradient(h, q, H[:, None], (soft * inverse_temperature)[:, None], BALANCED)
        if per_row.labels is not None:
            gradient += hard_gradient(z, over_columns(hard_row), column, label[:, None], hard[:, None])
        target = tensors.gradient + row * strides.gradient
        store_streamed(target[:, None] + column, gradient, (row < rows)[:, None] & (column < vocab))
