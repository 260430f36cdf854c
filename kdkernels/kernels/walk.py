"""A row that exceeds a program's registers, walked in tiles: whole ones without a mask, and what is left with one."""

import triton
import triton.language as tl

from .tile import lanes_of


@triton.jit
def walked(TILE: tl.constexpr, state, given, vocab, BACKWARD: tl.constexpr, WANTED: tl.constexpr, LAYOUT: tl.constexpr):
    """state = TILE(state, given, column, inside, WANTED) over the tiles of a row; inside is None where all columns are.

    The masked one comes first: where the result of a loop is used more than once, Triton's pass that keeps sums inside
    threads fails. Then the whole ones, BACKWARD from where a forward walk ended, with what of a long row is still in
    the caches. LAYOUT: (LANES, WIDTH, UNIT), a tile is (LANES, WIDTH).
    """
    STEP: tl.constexpr = LAYOUT[0] * LAYOUT[1]
    lane_column = lanes_of(LAYOUT[0], LAYOUT[1], LAYOUT[2] > 1)
    whole = vocab // STEP * STEP
    if whole < vocab:
        column = whole + lane_column
        state = TILE(state, given, column, column < vocab, WANTED)
    for start in range(0, whole, STEP):
        first = start
        if BACKWARD:
            first = whole - STEP - start
        state = TILE(state, given, first + lane_column, None, WANTED)
    return state
