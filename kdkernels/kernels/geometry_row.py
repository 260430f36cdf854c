"""The mathematics of a row of trilateral distances, which the kernel's forms share; csrc/geometry.h has it in C++.

S and P are the softmax of the student and the teacher, G the one-hot label y, M the label's row of a class-mean table.

    distances        |S - G|, |P - G|, |S - P|, with a class mean also |S - M|, |M - G|; or their squares
    dL/dz_v          S_v (w_v - <S, w>),  w = g1 (S - G) / d1 + g3 (S - P) / d3 + g4 (S - M) / d4

Sums run over the columns other than y. At y, 1 - S_y is the sum of the other S, and S_y - P_y is taken from whichever
of two forms is not a difference of numbers near 1: a confident student's distance must not drown in their rounding.
Every function here takes (N,) rows or one scalar row, and tiles as kernels/tile.py does.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .tile import LOG2_E, base_of, load_logits, load_values

STATISTICS = tl.constexpr(10)
SMALLEST_DISTANCE = tl.constexpr(1e-18)


class Label(NamedTuple):
    """A row's label: `known` says whether the row is read. Where it is not, index is 0 and filler is what it gets."""

    index: object  # int64
    known: object
    filler: object  # 0 for an ignored row, NaN for a label that is no class


class Sums(NamedTuple):
    """Sums over the columns other than the label's of S, P, S S, P P, S (S - P), (S - P)^2, M M, S (S - M), (S - M)^2;
    what has M is 0 without a class mean."""

    q: object
    p: object
    qq: object
    pp: object
    q_less_p: object
    squared_q_less_p: object
    mm: object
    q_less_m: object
    squared_q_less_m: object


class Softmax(NamedTuple):
    """softmax(z)_v = exponentials(z_v, peak) share."""

    peak: object
    share: object


class Pull(NamedTuple):
    """What multiplies S_v, S_v - P_v and S_v - M_v in w_v; what all w are taken relative to; w_y and <S, w> so taken.

    Where the label has most of the student's mass that is w_y, with which the small rest has to be compared; else 0.
    """

    label: object
    teacher: object
    mean: object
    reference: object
    at_label: object
    average: object


@triton.jit
def label_of(labels, row, rows, vocab, ignore_index):
    label = tl.load(labels + row, mask=row < rows, other=ignore_index)
    known = (label != ignore_index) & (label >= 0) & (label < vocab)
    return Label(tl.where(known, label, 0), known, tl.where(label == ignore_index, 0.0, float("nan")))


@triton.jit
def exponentials(z, peak):
    """e^(z - peak), up to the rounding of peak log2(e), which is the same in all columns and so leaves with the share.

    One multiply-add, fused where products are not (backends/triton.py), and one exponential.
    """
    base = base_of(peak, LOG2_E)
    return tl.exp2(tl.fma(z, tl.zeros_like(z) + LOG2_E, tl.zeros_like(z) - base))


@triton.jit
def probabilities(z, softmax):
    return exponentials(z, softmax.peak) * softmax.share


@triton.jit
def without(tile, column, label):
    """The tile with the label's column at 0. Before a product that may carry the row's NaN, never after it."""
    return tl.where(column == label, 0.0, tile)


@triton.jit
def at_label(held, label, student, teacher, MEAN: tl.constexpr):
    """(S_y, P_y, M_y): one element per row of each. held: what `rows_of` found."""
    z = load_logits(held[0] + label.index, label.known, "evict_last")
    t = load_logits(held[1] + label.index, label.known, "evict_last")
    m = tl.zeros_like(z)
    if MEAN:
        m = load_values(held[2] + label.index, label.known, "evict_last")
    return probabilities(z, student), probabilities(t, teacher), m


@triton.jit
def rows_of(tensors, strides, row, label, UNIT: tl.constexpr):
    """Pointers to the rows of the student, the teacher and, if there is one, the label's class mean; strides are in
    UNITs."""
    student = tensors.student + row * (strides.student * UNIT)
    mean = student
    if tensors.class_mean is not None:
        mean = tensors.class_mean + label.index * (strides.class_mean * UNIT)
    return student, tensors.teacher + row * (strides.teacher * UNIT), mean


@triton.jit
def no_sums(N: tl.constexpr):
    zero = tl.zeros((N,), tl.float32)
    return Sums(zero, zero, zero, zero, zero, zero, zero, zero, zero)


@triton.jit
def joined(sums, q, p, m, MEAN: tl.constexpr, SUM: tl.constexpr):
    """The sums joined by tiles of S, P and M without the label's column, each of which SUM reduces to a sum's shape."""
    mm = sums.mm
    q_less_m = sums.q_less_m
    squared_q_less_m = sums.squared_q_less_m
    if MEAN:
        difference = q - m
        mm += SUM(m * m)
        q_less_m += SUM(q * difference)
        squared_q_less_m += SUM(difference * difference)
    difference = q - p
    return Sums(
        sums.q + SUM(q),
        sums.p + SUM(p),
        sums.qq + SUM(q * q),
        sums.pp + SUM(p * p),
        sums.q_less_p + SUM(q * difference),
        sums.squared_q_less_p + SUM(difference * difference),
        mm,
        q_less_m,
        squared_q_less_m,
    )


@triton.jit
def over_lanes(sums):
    return Sums(
        tl.sum(sums.q, axis=0),
        tl.sum(sums.p, axis=0),
        tl.sum(sums.qq, axis=0),
        tl.sum(sums.pp, axis=0),
        tl.sum(sums.q_less_p, axis=0),
        tl.sum(sums.squared_q_less_p, axis=0),
        tl.sum(sums.mm, axis=0),
        tl.sum(sums.q_less_m, axis=0),
        tl.sum(sums.squared_q_less_m, axis=0),
    )


@triton.jit
def _difference(rest_q, rest_x, q, x):
    """S_y - X_y: from 1 - X_y and 1 - S_y where S_y is above 1/2."""
    return tl.where(rest_q < 0.5, rest_x - rest_q, q - x)


@triton.jit
def _store(pointer, value, inside, label):
    tl.store(pointer, tl.where(label.known, value, label.filler), mask=inside)


@triton.jit
def _store_distance(pointer, square, inside, label, SQUARED: tl.constexpr):
    if not SQUARED:
        square = tl.sqrt(square)
    _store(pointer, square, inside, label)


@triton.jit
def store_row(per_row, row, inside, label, student, teacher, sums, chosen, SQUARED: tl.constexpr, MEAN: tl.constexpr):
    """The row's distances and, where a gradient is wanted, its statistics; chosen is what `at_label` found."""
    label_q, label_p, label_m = chosen
    rest_m = 1.0 - label_m
    q_less_p = _difference(sums.q, sums.p, label_q, label_p)
    q_less_m = _difference(sums.q, rest_m, label_q, label_m)
    to = per_row.distances + row * (5 if MEAN else 3)
    _store_distance(to, sums.qq + sums.q * sums.q, inside, label, SQUARED)
    _store_distance(to + 1, sums.pp + sums.p * sums.p, inside, label, SQUARED)
    _store_distance(to + 2, sums.squared_q_less_p + q_less_p * q_less_p, inside, label, SQUARED)
    if MEAN:
        _store_distance(to + 3, sums.squared_q_less_m + q_less_m * q_less_m, inside, label, SQUARED)
        _store_distance(to + 4, sums.mm + rest_m * rest_m, inside, label, SQUARED)
    if per_row.statistics is not None:
        to = per_row.statistics + row * STATISTICS
        _store(to, student.peak, inside, label)
        _store(to + 1, student.share, inside, label)
        _store(to + 2, teacher.peak, inside, label)
        _store(to + 3, teacher.share, inside, label)
        _store(to + 4, sums.q, inside, label)
        _store(to + 5, q_less_p, inside, label)
        _store(to + 6, q_less_m, inside, label)
        _store(to + 7, sums.qq, inside, label)
        _store(to + 8, sums.q_less_p, inside, label)
        _store(to + 9, sums.q_less_m, inside, label)


@triton.jit
def _load(pointer, label):
    return tl.load(pointer, mask=label.known, other=0.0)


@triton.jit
def _pull(upstream, distance, SQUARED: tl.constexpr):
    """What multiplies a difference of probabilities: 0 where the distance is (nearly) 0, as in csrc/geometry.h."""
    if SQUARED:  # noqa: SIM108 - constant branches, of which one is compiled
        pull = 2.0 * upstream
    else:
        pull = tl.where(distance < SMALLEST_DISTANCE, 0.0, upstream / distance)
    return pull


@triton.jit
def pull_of(student_row, per_row, row, label, SQUARED: tl.constexpr, MEAN: tl.constexpr):
    """Backward: the two softmaxes and what is to be done with them, from what forward left and the upstream."""
    upstream = per_row.upstream + row * (5 if MEAN else 3)
    distance = per_row.distances + row * (5 if MEAN else 3)
    kept = per_row.statistics + row * STATISTICS
    to_label = _pull(_load(upstream, label), _load(distance, label), SQUARED)
    to_teacher = _pull(_load(upstream + 2, label), _load(distance + 2, label), SQUARED)
    rest = _load(kept + 4, label)
    at_label = to_teacher * _load(kept + 5, label) - to_label * rest
    average = to_label * _load(kept + 7, label) + to_teacher * _load(kept + 8, label)
    to_mean = tl.zeros_like(rest)
    if MEAN:
        to_mean = _pull(_load(upstream + 3, label), _load(distance + 3, label), SQUARED)
        at_label += to_mean * _load(kept + 6, label)
        average += to_mean * _load(kept + 9, label)
    student = Softmax(_load(kept, label), _load(kept + 1, label))
    teacher = Softmax(_load(kept + 2, label), _load(kept + 3, label))
    z = load_logits(student_row + label.index, label.known, "evict_last")
    reference = tl.where(rest < 0.5, at_label, 0.0)
    at_label -= reference
    average += probabilities(z, student) * at_label - reference * rest
    return student, teacher, Pull(to_label, to_teacher, to_mean, reference, at_label, average)
