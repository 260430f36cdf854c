"""Softmax and log-softmax with a temperature, and their backward: resident and streaming forms.

forward   output = softmax(z / T), or its logarithm
backward  softmax: g = y (u - sum y u) / T;  log_softmax: g = (u - exp(y) sum u) / T   (y: output, u: upstream)

Grids, tiles and LAYOUT: as in divergence_resident.py and divergence_streaming.py.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .tile import (
    LN_2,
    LOG2_E,
    LOG2_HIGH,
    LOG2_LOW,
    LOWEST,
    base_of,
    by_row,
    exponent,
    load_logits,
    load_values,
    parts_of_log2,
    places,
    residue,
    store_streamed,
    sum_of_rows,
    sum_over_lanes,
    sum_with,
    top_of_rows,
)
from .walk import walked


class Tensors(NamedTuple):
    """What is read and what is written, (rows, vocab) each; of backward the output, the upstream and the gradient."""

    source: object
    upstream: object  # None in forward
    target: object


class Strides(NamedTuple):
    """Of rows, in vectors."""

    source: int
    upstream: int
    target: int


class Scale(NamedTuple):
    """1 / T and log2(e) / T."""

    inverse_temperature: float
    to_base_2: float


class Row(NamedTuple):
    """softmax = 2^(z c - base) share; its logarithm = ((z - top) / T - high) - low, high and low of the sum's log."""

    base: object
    share: object
    top: object
    high: object
    low: object


@triton.jit
def _row_of(top, total, c):
    """total = sum 2^(z c - base). The base is top c rounded; what it was rounded by is in every exponent, and in the
    sum, of whose logarithm it is taken out."""
    base = base_of(top, c)
    k, m = parts_of_log2(total)
    small = residue(top, c, base, total) - exponent(top, c, base) * LN_2
    return Row(base, 1.0 / total, top, k * LOG2_HIGH, k * LOG2_LOW + (tl.log(m) + small))


@triton.jit
def _output(z, row, scale, LOG: tl.constexpr):
    if LOG:
        tile = ((z - row.top) * scale.inverse_temperature - row.high) - row.low
    else:
        tile = tl.exp2(exponent(z, scale.to_base_2, row.base)) * row.share
    return tile


@triton.jit(do_not_specialize=["rows", "units"])
def softmax_resident(tensors, strides, scale, rows, units, LOG: tl.constexpr, LAYOUT: tl.constexpr):
    WIDTH: tl.constexpr = LAYOUT[0]
    row = tl.program_id(0).to(tl.int64) * LAYOUT[2] + tl.arange(0, LAYOUT[2])
    column = places(LAYOUT[3], LAYOUT[1], WIDTH)
    inside = by_row(row < rows) & (column < units * WIDTH)
    z = load_logits(tensors.source + (by_row(row * (strides.source * WIDTH)) + column), inside, "evict_first")
    c = scale.to_base_2
    top = top_of_rows(z)
    found = _row_of(top, sum_of_rows(tl.exp2(exponent(z, c, by_row(base_of(top, c))))), c)
    spread = Row(by_row(found.base), by_row(found.share), by_row(found.top), by_row(found.high), by_row(found.low))
    target = tensors.target + (by_row(row * (strides.target * WIDTH)) + column)
    store_streamed(target, _output(z, spread, scale, LOG), inside)


@triton.jit
def _gather(state, given, column, inside, WANTED: tl.constexpr):
    """The largest logits and the sums of the lanes, joined by a tile."""
    lane_top, total = state
    logits, c = given
    z = load_logits(logits + column, inside, "evict_last")
    top = tl.maximum(lane_top, tl.max(z, axis=1))
    return top, sum_with(total, lane_top, top, z, c)


@triton.jit
def _write(state, given, column, inside, WANTED: tl.constexpr):
    logits, target, row, scale = given
    z = load_logits(logits + column, inside, "evict_first")
    store_streamed(target + column, _output(z, row, scale, WANTED), inside)
    return state


@triton.jit(do_not_specialize=["rows", "units"])
def softmax_streaming(tensors, strides, scale, rows, units, LOG: tl.constexpr, LAYOUT: tl.constexpr):
    """Forward for the normaliser, backward for the output."""
    LANES: tl.constexpr = LAYOUT[0]
    UNIT: tl.constexpr = LAYOUT[2]
    row = tl.program_id(0).to(tl.int64)
    logits = tensors.source + row * (strides.source * UNIT)
    target = tensors.target + row * (strides.target * UNIT)
    c = scale.to_base_2
    nothing = (tl.full((LANES,), LOWEST, tl.float32), tl.zeros((LANES,), tl.float32))
    lane_top, total = walked(_gather, nothing, (logits, c), units * UNIT, False, None, LAYOUT)
    top = tl.max(lane_top, axis=0)
    found = _row_of(top, sum_over_lanes(total, lane_top, top, c), c)
    walked(_write, top, (logits, target, found, scale), units * UNIT, True, LOG, LAYOUT)


@triton.jit
def _contracted(u, y, LOG: tl.constexpr):
    """What is summed: y u, or u for the logarithm."""
    return u if LOG else u * y


@triton.jit
def _derivative(u, y, total, scale, LOG: tl.constexpr):
    if LOG:  # noqa: SIM108
        tile = u - tl.exp2(y * LOG2_E) * total
    else:
        tile = y * (u - total)
    return tile * scale.inverse_temperature


@triton.jit(do_not_specialize=["rows", "units"])
def softmax_backward_resident(tensors, strides, scale, rows, units, LOG: tl.constexpr, LAYOUT: tl.constexpr):
    WIDTH: tl.constexpr = LAYOUT[0]
    row = tl.program_id(0).to(tl.int64) * LAYOUT[2] + tl.arange(0, LAYOUT[2])
    column = places(LAYOUT[3], LAYOUT[1], WIDTH)
    inside = by_row(row < rows) & (column < units * WIDTH)
    y = load_values(tensors.source + (by_row(row * (strides.source * WIDTH)) + column), inside, "evict_first")
    u = load_values(tensors.upstream + (by_row(row * (strides.upstream * WIDTH)) + column), inside, "evict_first")
    total = by_row(sum_of_rows(_contracted(u, y, LOG)))
    target = tensors.target + (by_row(row * (strides.target * WIDTH)) + column)
    store_streamed(target, _derivative(u, y, total, scale, LOG), inside)


@triton.jit
def _contract(total, given, column, inside, WANTED: tl.constexpr):
    output, upstream = given
    u = load_values(upstream + column, inside, "evict_last")
    y = load_values(output + column, inside, "evict_last")  # of the logarithm's sum dropped by the compiler
    return total + tl.sum(_contracted(u, y, WANTED), axis=1)


@triton.jit
def _write_derivative(state, given, column, inside, WANTED: tl.constexpr):
    output, upstream, target, total, scale = given
    u = load_values(upstream + column, inside, "evict_first")
    y = load_values(output + column, inside, "evict_first")
    store_streamed(target + column, _derivative(u, y, total, scale, WANTED), inside)
    return state


@triton.jit(do_not_specialize=["rows", "units"])
def softmax_backward_streaming(tensors, strides, scale, rows, units, LOG: tl.constexpr, LAYOUT: tl.constexpr):
    """Forward for the sum, backward for the gradient."""
    LANES: tl.constexpr = LAYOUT[0]
    UNIT: tl.constexpr = LAYOUT[2]
    row = tl.program_id(0).to(tl.int64)
    output = tensors.source + row * (strides.source * UNIT)
    upstream = tensors.upstream + row * (strides.upstream * UNIT)
    target = tensors.target + row * (strides.target * UNIT)
    nothing = tl.zeros((LANES,), tl.float32)
    total = tl.sum(walked(_contract, nothing, (output, upstream), units * UNIT, False, LOG, LAYOUT), axis=0)
    walked(_write_derivative, total, (output, upstream, target, total, scale), units * UNIT, True, LOG, LAYOUT)
