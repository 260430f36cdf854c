"""What every schedule does to a tile of logits in registers: load it, gather softmax statistics, exponentiate it.

Everything is in base 2: with c = log2(e) / T, an exponent is x = z c - base, one fused multiply-add, and e = 2^x one
instruction of the special-function unit. `base` is the row's largest z c, rounded; whatever it is rounded to, it is the
same number in every column, so that e / sum e does not depend on it. (Beyond |z c| = 3.4e38 a row becomes NaN, as z / T
does in PyTorch.)

In the resident form a tile is (PARTS, ROWS, LANES, WIDTH): a row lies in LANES threads, WIDTH neighbouring columns of
each of PARTS steps in one of them. In the streaming form it is (LANES, WIDTH): *lanes* are interleaved slices of one
row, so that a walk reduces WIDTH elements inside a thread and exchanges nothing between threads until it ends.
"""

import triton
import triton.language as tl

# Where a running maximum starts. Finite, so that (-inf) - base is -inf and not NaN when a first tile is all -inf; the
# lowest float32, so that no finite logit lies below it.
LOWEST = tl.constexpr(-3.4028234663852886e38)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# log 2 in two parts. The high one has 15 significant bits, so its product with an exponent (8 bits) is exact.
LOG2_HIGH = tl.constexpr(0.693145751953125)
LOG2_LOW = tl.constexpr(1.4286068203094173e-06)


@triton.jit
def load_logits(pointer, inside, EVICTION: tl.constexpr):
    """Logits as float32, -inf outside: a padding lane has probability 0 on both sides. inside of None: all are."""
    if inside is None:
        z = tl.load(pointer, eviction_policy=EVICTION)
    else:
        z = tl.load(pointer, mask=inside, other=float("-inf"), eviction_policy=EVICTION)
    return z.to(tl.float32)


@triton.jit
def load_values(pointer, inside, EVICTION: tl.constexpr):
    """Numbers that are no logits as float32, 0 outside. inside of None: all are."""
    if inside is None:
        tile = tl.load(pointer, eviction_policy=EVICTION)
    else:
        tile = tl.load(pointer, mask=inside, other=0.0, eviction_policy=EVICTION)
    return tile.to(tl.float32)


@triton.jit
def store_streamed(pointer, tile, inside):
    """Store in the pointer's dtype, marked as not read again: it should not push logits out of the caches."""
    if inside is None:
        tl.store(pointer, tile.to(pointer.dtype.element_ty), cache_modifier=".cs")
    else:
        tl.store(pointer, tile.to(pointer.dtype.element_ty), mask=inside, cache_modifier=".cs")


@triton.jit
def places(LANES: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Columns of a resident tile, (PARTS, 1, LANES, WIDTH): WIDTH neighbours are one vector load of a thread."""
    part = tl.arange(0, PARTS)[:, None, None, None]
    lane = tl.arange(0, LANES)[None, None, :, None]
    return part * (LANES * WIDTH) + lane * WIDTH + tl.arange(0, WIDTH)[None, None, None, :]


@triton.jit
def by_row(row):
    """A number of each row, (ROWS,), against resident tiles."""
    return row[None, :, None, None]


@triton.jit
def sum_of_rows(tile):
    """(PARTS, ROWS, LANES, WIDTH) to (ROWS,): inside a thread first, then over the lanes."""
    return tl.sum(tl.sum(tl.sum(tile, axis=3), axis=0), axis=1)


@triton.jit
def top_of_rows(tile):
    return tl.max(tl.max(tl.max(tile, axis=3), axis=0), axis=1)


@triton.jit
def base_of(top, c):
    """What exponents are taken relative to. Not below the lowest number: (-inf) c - (-inf) would be NaN."""
    return tl.maximum(top * c, LOWEST)


@triton.jit
def exponent(z, c, base):
    """One fused multiply-add: z c is not rounded before the base is taken from it."""
    return z * c - base


@triton.jit
def sum_with(total, old_top, top, z, c):
    """The running sum of exponentials, (LANES,), moved from old_top to top and joined by the tile z (LANES, WIDTH)."""
    base = base_of(top, c)
    kept = total * tl.exp2(base_of(old_top, c) - base)
    return kept + tl.sum(tl.exp2(exponent(z, c, base[:, None])), axis=1)


@triton.jit
def sum_over_lanes(total, lane_top, top, c):
    """The sum of exponentials of one row from those of its lanes or parts (N,); one that saw no logit adds 0."""
    return tl.sum(total * tl.exp2(base_of(lane_top, c) - base_of(top, c)), axis=0)


@triton.jit
def parts_of_log2(total):
    """(k, m) with total = 2^k m, m in [1, 2); (0, total) for a total that is 0, infinite or NaN."""
    regular = (total > 1e-30) & (total < float("inf"))
    bits = total.to(tl.int32, bitcast=True)
    k = tl.where(regular, (bits >> 23) - 127, 0).to(tl.float32)
    return k, tl.where(regular, ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True), total)


@triton.jit
def residue(top, c, base, total):
    """What log(total) misses: the largest logit's exponent is not 0 but the rounding r of its base, and 2^r, which a
    float32 near 1 can hardly tell from 1, weighs most in a peaked row. To first order, exactly (2^r - e_top) / total."""
    r = exponent(top, c, base)
    return ((1.0 - tl.exp2(r)) + r * LN_2) / total


@triton.jit
def log_of_ratio(a, b):
    """log(a / b) of two sums, to the last bits: what it is off by would be the same error in every column.

    Exactly 0 where they are equal.
    """
    ka, ma = parts_of_log2(a)
    kb, mb = parts_of_log2(b)
    return (ka - kb) * LOG2_HIGH + ((ka - kb) * LOG2_LOW + (tl.log(ma) - tl.log(mb)))


@triton.jit
def cross_entropy_of(chosen, top, total):
    """-log softmax(z)[label] at temperature 1 from the label's logit and the row's largest and sum of exponentials."""
    base = base_of(top, LOG2_E)
    k, m = parts_of_log2(total)
    small = residue(top, LOG2_E, base, total) - exponent(top, LOG2_E, base) * LN_2
    return ((top - chosen) + k * LOG2_HIGH) + (k * LOG2_LOW + tl.log(m) + small)


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
