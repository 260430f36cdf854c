"""Softmax and log-softmax with a temperature, and their backward: resident and streaming forms.

forward   output = softmax(z / T), or its logarithm
backward  softmax: g = y (u - sum y u) / T;  log_softmax: g = (u - exp(y) sum u) / T   (y: output, u: upstream)
"""

import triton
import triton.language as tl

from .tile import (
    LOWEST,
    lanes_of,
    load_logits,
    load_values,
    log_softmax,
    normaliser,
    over_columns,
    peak_with,
    store_streamed,
    total_of,
    total_over_lanes,
    total_with,
)


@triton.jit
def _store_output(pointer, z, row, inverse_temperature, inside, LOG: tl.constexpr):
    tile = log_softmax(z, row, inverse_temperature)
    if not LOG:
        tile = tl.exp(tile)
    store_streamed(pointer, tile, inside)


@triton.jit(do_not_specialize=["rows"])
def softmax_resident(
    logits,
    output,
    logits_stride,
    output_stride,
    inverse_temperature,
    rows,
    vocab,
    LOG: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program i holds ROWS rows from i ROWS on as a tile (ROWS, BLOCK), BLOCK >= vocab. Grid: (ceil(rows / ROWS),)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None] & (column < vocab)
    z = load_logits((logits + row * logits_stride)[:, None] + column, inside, "evict_first")
    peak = tl.max(z, axis=1)
    z_row = over_columns(normaliser(peak, total_of(peak, z, inverse_temperature)))
    _store_output((output + row * output_stride)[:, None] + column, z, z_row, inverse_temperature, inside, LOG)


@triton.jit(do_not_specialize=["rows"])
def softmax_streaming(
    logits,
    output,
    logits_stride,
    output_stride,
    inverse_temperature,
    rows,
    vocab,
    LOG: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Program i walks row i, forward for the normaliser and backward for the output. Grid: (rows,)."""
    STEP: tl.constexpr = LANES * WIDTH
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    output += row * output_stride
    lane_peak = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocab, STEP):
        column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
        z = load_logits(logits + column, column < vocab, "evict_last")
        peak = peak_with(lane_peak, z)
        total = total_with(total, lane_peak, peak, z, inverse_temperature)
        lane_peak = peak
    peak = tl.max(lane_peak, axis=0)
    z_row = normaliser(peak, total_over_lanes(total, lane_peak, peak, inverse_temperature))
    last = (vocab - 1) // STEP * STEP
    for walked in range(0, vocab, STEP):
        column = last - walked + lanes_of(LANES, WIDTH, CONTIGUOUS)
        z = load_logits(logits + column, column < vocab, "evict_first")
        _store_output(output + column, z, z_row, inverse_temperature, column < vocab, LOG)


@triton.jit
def _contracted(u, y, LOG: tl.constexpr):
    """sum y u, or sum u for the logarithm, of a tile along axis 1."""
    if not LOG:
        u = u * y
    return tl.sum(u, axis=1)


@triton.jit
def _derivative(u, y, total, inverse_temperature, LOG: tl.constexpr):
    if LOG:  # noqa: SIM108
        tile = u - tl.exp(y) * total
    else:
        tile = y * (u - total)
    return tile * inverse_temperature


@triton.jit(do_not_specialize=["rows"])
def softmax_backward_resident(
    tensors,
    strides,
    inverse_temperature,
    rows,
    vocab,
    LOG: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """tensors and strides: (upstream, output, gradient). Grid and tiles as in softmax_resident."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None] & (column < vocab)
    u = load_values((tensors[0] + row * strides[0])[:, None] + column, inside, "evict_first")
    y = load_values((tensors[1] + row * strides[1])[:, None] + column, inside, "evict_first")
    gradient = _derivative(u, y, _contracted(u, y, LOG)[:, None], inverse_temperature, LOG)
    store_streamed((tensors[2] + row * strides[2])[:, None] + column, gradient, inside)


@triton.jit(do_not_specialize=["rows"])
def softmax_backward_streaming(
    tensors,
    strides,
    inverse_temperature,
    rows,
    vocab,
    LOG: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """Program i walks row i, forward for the sum and backward for the gradient. Grid: (rows,)."""
    STEP: tl.constexpr = LANES * WIDTH
    row = tl.program_id(0).to(tl.int64)
    upstream = tensors[0] + row * strides[0]
    output = tensors[1] + row * strides[1]
    gradient = tensors[2] + row * strides[2]
    lane_total = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocab, STEP):
        column = start + lanes_of(LANES, WIDTH, CONTIGUOUS)
        u = load_values(upstream + column, column < vocab, "evict_last")
        # The logarithm's sum needs no y: its load is then dropped by the compiler.
        y = load_values(output + column, column < vocab, "evict_last")
        lane_total += _contracted(u, y, LOG)
    total = tl.sum(lane_total, axis=0)
    last = (vocab - 1) // STEP * STEP
    for walked in range(0, vocab, STEP):
        column = last - walked + lanes_of(LANES, WIDTH, CONTIGUOUS)
        u = load_values(upstream + column, column < vocab, "evict_first")
        y = load_values(output + column, column < vocab, "evict_first")
        store_streamed(gradient + column, _derivative(u, y, total, inverse_temperature, LOG), column < vocab)
