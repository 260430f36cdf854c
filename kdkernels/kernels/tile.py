"""What every schedule does to a tile of logits in registers: load it, gather softmax statistics, normalise it.

A tile is (N, K). In the resident form its N rows are rows of the matrix; in the streaming form they are *lanes*, N
interleaved slices of one row, so that a walk reduces K elements inside a thread and exchanges nothing between threads
until it ends. The functions here reduce along axis 1 and do not care which of the two they serve.

The *normaliser* of a row is (peak, high, low): its largest logit and log(sum exp((z - peak) / T)) in two parts.
"""

import triton
import triton.language as tl

# Where a running maximum starts. Finite, so that (-inf) - peak is -inf and not NaN when a first tile is all -inf; the
# lowest float32, so that no finite logit lies below it.
LOWEST = tl.constexpr(-3.4028234663852886e38)
# log 2 in two parts. The high one has 15 significant bits, so its product with an exponent (8 bits) is exact.
LOG2_HIGH = tl.constexpr(0.693145751953125)
LOG2_LOW = tl.constexpr(1.4286068203094173e-06)


@triton.jit
def load_logits(pointer, inside, EVICTION: tl.constexpr):
    """Logits as float32, -inf outside: a padding lane has probability 0 on both sides."""
    return tl.load(pointer, mask=inside, other=float("-inf"), eviction_policy=EVICTION).to(tl.float32)


@triton.jit
def load_values(pointer, inside, EVICTION: tl.constexpr):
    """Numbers that are no logits as float32, 0 outside."""
    return tl.load(pointer, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)


@triton.jit
def store_streamed(pointer, tile, inside):
    """Store in the pointer's dtype, marked as not read again: it should not push logits out of the caches."""
    tl.store(pointer, tile.to(pointer.dtype.element_ty), mask=inside, cache_modifier=".cs")


@triton.jit
def lanes_of(LANES: tl.constexpr, WIDTH: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Columns of a streamed tile, (LANES, WIDTH), laid out so that a lane's WIDTH columns fall to one thread.

    CONTIGUOUS: they are neighbours, one vector load. Otherwise, for rows that no vector load may touch, they lie LANES
    apart, so that each of the WIDTH loads is coalesced over the threads.
    """
    lane = tl.arange(0, LANES)[:, None]
    part = tl.arange(0, WIDTH)[None, :]
    if CONTIGUOUS:  # noqa: SIM108
        column = lane * WIDTH + part
    else:
        column = lane + part * LANES
    return column


@triton.jit
def peak_with(peak, z):
    """The running maximum (N,) after the tile z (N, K) joined. It may drop NaN; the sum of exponentials keeps it."""
    return tl.maximum(peak, tl.max(z, axis=1))


@triton.jit
def total_with(total, old_peak, peak, z, inverse_temperature):
    """The running sum of exp((z - peak) / T), (N,), moved from old_peak to peak and joined by the tile z (N, K)."""
    kept = total * tl.exp((old_peak - peak) * inverse_temperature)
    return kept + tl.sum(tl.exp((z - peak[:, None]) * inverse_temperature), axis=1)


@triton.jit
def total_of(peak, z, inverse_temperature):
    """sum exp((z - peak) / T) of whole rows z (N, K), (N,)."""
    return tl.sum(tl.exp((z - peak[:, None]) * inverse_temperature), axis=1)


@triton.jit
def total_over_lanes(total, lane_peak, peak, inverse_temperature):
    """The sum of exponentials of one row from those of its lanes (N,); a lane that saw no logit adds 0."""
    return tl.sum(total * tl.exp((lane_peak - peak) * inverse_temperature), axis=0)


@triton.jit
def normaliser(peak, total):
    """(peak, high, low) with high + low = log(total) to 6e-8, where one float32 near log(1e5) would round by 5e-7.

    total = 2^k m: high = k LOG2_HIGH is exact, low = k LOG2_LOW + log m with m in [1, 2). A total of 0 (all logits
    -inf) or NaN takes the plain logarithm and so becomes PyTorch's NaN. What remains of a row's systematic error is the
    rounding of log q itself: columns that share a binade and a grid are off by the same half unit, 5e-7 at most.
    """
    regular = (total >= 1.0) & (total < float("inf"))  # the largest logit alone adds 1
    bits = total.to(tl.int32, bitcast=True)
    exponent = tl.where(regular, (bits >> 23) - 127, 0).to(tl.float32)
    mantissa = tl.where(regular, ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True), total)
    return peak, exponent * LOG2_HIGH, exponent * LOG2_LOW + tl.log(mantissa)


@triton.jit
def over_columns(row):
    """A normaliser of (N,) parts, to be used against (N, K) tiles."""
    return row[0][:, None], row[1][:, None], row[2][:, None]


@triton.jit
def log_softmax(z, row, inverse_temperature):
    """(z - peak) / T - log(total) for the normaliser row = (peak, high, low), whose parts broadcast against z."""
    return ((z - row[0]) * inverse_temperature - row[1]) - row[2]


@triton.jit
def logarithms(z, t, student, teacher, inverse_temperature):
    """(log q, log p, log(p / q)) of a tile; the ratio from the parts, before log q and log p round."""
    z = (z - student[0]) * inverse_temperature - student[1]
    t = (t - teacher[0]) * inverse_temperature - teacher[1]
    return z - student[2], t - teacher[2], (t - z) - (teacher[2] - student[2])
