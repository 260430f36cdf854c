"""What a divergence kernel is given, and the parts that its resident and its streaming form share.

    value_r  = soft_r sum_v f(log q_v, log p_v) + hard_r CE(label_r)
    gradient = soft_r (h - q H) / T + hard_r (softmax(student) - onehot(label_r))

soft_r and hard_r are scale times weight; a factor of 0 removes its part, whatever the logits hold. A loss is known to
the kernels only as TERM and BALANCED (H = 0). Every function here takes (N,) rows or one scalar row.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .tile import LN_2, LOG2_E, base_of, exponent, log_of_ratio, residue


class Tensors(NamedTuple):
    """(rows, vocab) tensors, pointers in a kernel. Kernels take groups of arguments as tuples, a Triton feature."""

    student: object
    teacher: object
    gradient: object  # None: no gradient is wanted and no code for it is generated


class Strides(NamedTuple):
    """Row strides in vectors: multiples of the columns that may be loaded at once (UNIT)."""

    student: int
    teacher: int
    gradient: int


class PerRow(NamedTuple):
    """(rows,) tensors, pointers in a kernel. labels of None drop the cross-entropy; a weight of None is 1."""

    value: object
    labels: object
    soft_weight: object
    hard_weight: object


class Table(NamedTuple):
    """A loss's class-indexed parameters, (orders, width) float32; None in its place where a loss has none.

    A term unrolls its loop over the orders, and masks the columns of a tile that lie beyond the width.
    """

    pointer: object
    width: int  # a multiple of 16 that holds the vocabulary, or 1
    orders: object  # tl.constexpr
    per_class: object  # tl.constexpr; False: width is 1 and all columns share it


class Scalars(NamedTuple):
    """Run-time float32: a schedule of the temperature, a parameter or a scale recompiles nothing."""

    inverse_temperature: float
    parameter: float
    soft_scale: float
    hard_scale: float


@triton.jit
def _factor(weight, scale, row, counted):
    # One return at the end: Triton compiles what follows a return in a constant branch even where it is taken.
    if weight is None:  # noqa: SIM108
        value = tl.where(counted, 1.0, 0.0)
    else:
        value = tl.load(weight + row, mask=counted, other=0.0)
    return value * scale


@triton.jit
def factors(per_row, scalars, row, counted):
    """(soft, hard), 0 where a row is past the end."""
    soft = _factor(per_row.soft_weight, scalars.soft_scale, row, counted)
    if per_row.labels is None:
        hard = tl.zeros_like(soft)
    else:
        hard = _factor(per_row.hard_weight, scalars.hard_scale, row, counted)
    return soft, hard


@triton.jit
def label_of(labels, row, vocab, hard):
    """The row's label as int32; -1, which no column equals, where it is no class or the row has no cross-entropy."""
    label = tl.load(labels + row, mask=hard != 0.0, other=-1)
    return tl.where((label >= 0) & (label < vocab), label, -1).to(tl.int32)


@triton.jit
def chosen_of(student, label):
    """The label's logit from the rows' pointers, NaN for a label of -1. Whoever calls this sees to a barrier between
    it and the first store of a gradient: threads read a logit here that another thread may overwrite there."""
    return tl.load(student + label, mask=label >= 0, other=float("nan")).to(tl.float32)


@triton.jit
def table_column(column, VECTORS: tl.constexpr):
    """The columns by which a term indexes its table; what lies beyond the table it masks.

    Where the logits are not loaded by VECTORS but one by one, vectors of the table would be traded between threads
    through shared memory, once per order. A zero that Triton cannot see through hides that the table is aligned.
    """
    if not VECTORS:
        column += tl.minimum(tl.program_id(0), 0)
    return column


class Row(NamedTuple):
    """What normalises a row: q = 2^(z c - base) share, p likewise, log(p / q) = log 2 (x_t - x_z) + shift."""

    base: object
    share: object
    teacher_base: object
    teacher_share: object
    shift: object


@triton.jit
def row_of(top, total, teacher_top, teacher_total, c):
    """From both sides' largest logits and sums of exponentials."""
    base, teacher_base = base_of(top, c), base_of(teacher_top, c)
    less = residue(top, c, base, total) - residue(teacher_top, c, teacher_base, teacher_total)
    return Row(base, 1.0 / total, teacher_base, 1.0 / teacher_total, log_of_ratio(total, teacher_total) + less)


@triton.jit
def logarithm_of_ratio(x, teacher_x, shift):
    """log(p / q) in nats from the exponents, before log q and log p round; 0 where both sides hold the same logits."""
    return (teacher_x - x) * LN_2 + shift


@triton.jit
def value_of(soft, loss, hard, cross_entropy):
    return tl.where(soft != 0.0, soft * loss, 0.0) + tl.where(hard != 0.0, hard * cross_entropy, 0.0)


@triton.jit
def soft_gradient(h, q, H, factor, BALANCED: tl.constexpr):
    """factor (h - q H) with factor = soft / T."""
    if not BALANCED:
        h -= q * H
    return tl.where(factor != 0.0, factor * h, 0.0)


@triton.jit
def hard_gradient(z, hard_base, hard_share, column, label, hard):
    """hard (softmax(student) - onehot(label)) at temperature 1."""
    onehot = tl.where(column == label, 1.0, 0.0)
    return tl.where(hard != 0.0, hard * (tl.exp2(exponent(z, LOG2_E, hard_base)) * hard_share - onehot), 0.0)
