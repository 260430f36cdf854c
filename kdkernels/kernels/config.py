"""How each kernel is launched: data, frozen, with the reason beside each row. Nothing is tuned at run time.

None of these rows has been timed: they were chosen without a GPU, from the registers, spills and shared memory that
the compilers report (python_tests/test_triton_compile.py holds them to it) and from the arithmetic in the reasons. A
measurement beats every reason below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Resident:
    """Rows of up to `vocab` columns: a program holds `rows` of them in registers, spread over `threads` threads."""

    vocab: int
    rows: int
    threads: int
    reason: str


@dataclass(frozen=True)
class Streaming:
    """Rows of up to `vocab` columns: a program walks one in tiles of `threads` x (16 bytes of the first tensor).

    `narrow` is the number of columns per thread and tile instead where a row's start is not aligned to a vector, and
    `registers` a bound per thread that is handed to ptxas (AMD's compiler derives its own from the threads). No tile is
    wider than `widest` columns per thread.
    """

    vocab: int
    threads: int
    narrow: int
    registers: int
    reason: str
    widest: int = 8


@dataclass(frozen=True)
class Split:
    """Few rows of more than `vocab` columns: parts of at least `tiles` tiles, until there are `fill` programs for each
    multiprocessor. Threads and tiles as in `Streaming`."""

    vocab: int
    fill: int
    tiles: int
    threads: int
    narrow: int
    registers: int
    reason: str


@dataclass(frozen=True)
class Tiled:
    """No row is reduced: a program maps `steps` tiles of `tile` elements, rows times at most `tile` columns."""

    tile: int
    steps: int
    threads: int
    reason: str


@dataclass(frozen=True)
class Shared:
    """No row is reduced: at most `programs` programs for each multiprocessor share out all tiles of `tile` elements."""

    tile: int
    programs: int
    threads: int
    reason: str


UNBOUNDED = 2**31 - 1

# Two logit tiles and, in the gradient, h and q live at once. With 4 to 8 columns per thread the compilers need 28 to 80
# registers for value and gradient on sm_80 and sm_90 (64 at most from 2048 columns on), and 31 to 94 on gfx942 (125
# with eight orders of the perturbed loss).
DIVERGENCE: tuple[Resident | Streaming, ...] = (
    Resident(16, 32, 128, "4 columns per thread: unaligned rows (vocab 10) keep one predicate per element"),
    Resident(32, 16, 128, "as above"),
    Resident(64, 8, 128, "as above; a warp covers whole rows, reductions are shuffles"),
    Resident(128, 4, 128, "as above; CIFAR-100's 100 columns"),
    Resident(256, 4, 128, "8 columns per thread: one 16-byte load of bf16, two of float32"),
    Resident(512, 2, 128, "as above"),
    Resident(1024, 2, 256, "as above; 1000 columns of ImageNet, whose rows are not aligned to 16 elements"),
    Resident(2048, 1, 256, "as above; from here a row alone feeds a program"),
    Resident(4096, 1, 512, "as above; two programs per SM, so that one loads while the other reduces"),
    Resident(8192, 1, 512, "16 columns per thread: 1024 threads may use 64 registers, 8 bytes too few (skew reverse)"),
    Streaming(
        65536, 512, 4, 64,
        "at most 64 registers: two programs or more per SM overlap each other's reductions; the rows in flight on 132 "
        "SMs, 2 x 132 x 256 KiB of bf16 at 65536 columns, are re-read mostly from L2 (50 MiB on H100) and L1",
    ),
    Streaming(
        UNBOUNDED, 1024, 4, 64,
        "1024 threads of 33 to 64 registers are one program per SM: at 128256 columns of bf16 132 rows in flight are "
        "66 MiB, about what L2 and the L1s of an H100 hold; two programs per SM would be twice that",
    ),
)  # fmt: skip

# A table with a column per class adds orders x columns loads, which the compilers start early: with 16 columns per
# thread (8192), or with 8 in 64 registers, 5 to 8 orders spill.
DIVERGENCE_PER_CLASS = tuple(
    row if isinstance(row, Resident) else replace(row, widest=4) for row in DIVERGENCE if row.vocab != 8192
)

SPLIT = Split(
    8192, 2, 2, 512, 4, 64,
    "fewer rows than multiprocessors leave the others idle; two launches more cost microseconds, so only rows that "
    "do not fit one program's registers are split, and a part's walk is at least two tiles long",
)  # fmt: skip

# One tile lives at a time, so twice the columns per thread of DIVERGENCE and a row of twice the length.
SOFTMAX: tuple[Resident | Streaming, ...] = (
    Resident(16, 64, 128, "8 columns per thread"),
    Resident(64, 16, 128, "as above"),
    Resident(128, 8, 128, "as above"),
    Resident(512, 4, 128, "16 columns per thread: two 16-byte loads of bf16 in flight"),
    Resident(1024, 2, 128, "as above"),
    Resident(2048, 1, 128, "as above"),
    Resident(4096, 1, 256, "as above"),
    Resident(8192, 1, 512, "as above"),
    Resident(16384, 1, 1024, "as above; 1024 threads may use 64 registers each"),
    Streaming(UNBOUNDED, 512, 4, 64, "two walks, one tensor: half the bytes in flight of the divergence's rows"),
)

# Two tiles, one walk over each before the gradient: the divergence's lengths hold.
SOFTMAX_BACKWARD = DIVERGENCE

# Two tiles, three with a class mean, of which nothing is written: the divergence's lengths hold.
TRILATERAL = DIVERGENCE

SCALE = Shared(
    1024, 16, 128,
    "with a factor of 1 a launch costs the programs' start and nothing else: 16 of 128 threads are all that an SM "
    "holds at once (65536 programs for 65536 rows took 41 us on an H200); 16 x 2 KiB of bf16 in flight on an SM hide "
    "DRAM's latency",
)  # fmt: skip

TRILATERAL_BACKWARD = Tiled(
    256, 32, 64,
    "few elements and threads, because a thread holds up to 14 numbers of each row that it has a part of: with 128 "
    "threads, each a part of 4 rows of 100 columns, gfx942 spills; 32 tiles share a row's numbers",
)  # fmt: skip


def choose(table: tuple[Resident | Streaming, ...], vocab: int) -> Resident | Streaming:
    for row in table:
        if vocab <= row.vocab:
            return row
    raise ValueError(f"no row of the table takes {vocab} columns")
