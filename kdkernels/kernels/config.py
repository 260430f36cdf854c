"""How each kernel is launched: data, frozen, with the reason beside each row. Nothing is tuned at run time.

What a reason calls measured was timed on an H200 (bench/results); the rest was chosen without a GPU, from the
registers, spills and shared memory that the compilers report (python_tests/test_triton_compile.py holds them to it)
and from the arithmetic in the reasons. A measurement beats every reason below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, eq=False)
class Resident:
    """Rows of up to `vocab` columns: a program of `threads` threads holds rows in registers, each spread over `lanes`
    of them: one row where the lanes are all threads, else as many as fill them."""

    vocab: int
    lanes: int
    threads: int
    reason: str


@dataclass(frozen=True, eq=False)
class Streaming:
    """Rows of up to `vocab` columns: a program walks one in tiles of `tile` columns, 16 bytes of the first tensor, but
    at most `widest` columns, to a thread.

    `narrow` is the number of columns per thread and tile instead where a row may not be loaded by vectors, and
    `registers` a bound per thread that is handed to ptxas (AMD's compiler derives its own from the threads).
    """

    vocab: int
    tile: int
    narrow: int
    registers: int
    reason: str
    widest: int = 8


@dataclass(frozen=True, eq=False)
class Split:
    """Few rows of more than `vocab` columns: parts of at least `tiles` tiles, until there are `fill` programs for each
    multiprocessor. Tiles as in `Streaming`."""

    vocab: int
    fill: int
    tiles: int
    tile: int
    narrow: int
    registers: int
    reason: str
    widest: int = 8


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

# Sixteen columns to a thread, thirty-two where a row has a warp to itself or more: measured, 65536x1000 bf16 forward KL
# takes 109 us with a warp a row, 119 with two, 149 with four and 258 with 256 threads for two rows; 262144x100 takes 53
# with 8 lanes a row, 84 with 16, 163 with 32. Programs of one warp reduce without a barrier.
DIVERGENCE: tuple[Resident | Streaming, ...] = (
    Resident(16, 1, 32, "16 columns per thread, no exchange between threads"),
    Resident(32, 2, 32, "as above; a row's lanes are neighbours, reductions are shuffles"),
    Resident(64, 4, 32, "as above"),
    Resident(128, 8, 32, "measured (above)"),
    Resident(256, 16, 32, "as above"),
    Resident(512, 32, 32, "as above"),
    Resident(1024, 32, 32, "measured (above); 32 columns per thread"),
    Resident(2048, 64, 64, "32 columns per thread"),
    Resident(4096, 128, 128, "as above"),
    Resident(8192, 256, 256, "as above"),
    Streaming(
        UNBOUNDED, 4096, 4, 64,
        "measured, 8192x32000: bf16 in 512 threads 515 us, in 256 577, in 1024 655; float32 in 1024 threads 943, in "
        "512 1036, in 256 1174. At 128256 columns the forms differ by 5 %: rows in flight exceed L2 in each",
    ),
)  # fmt: skip

# A table with a column per class adds orders x columns loads, which the compilers start early.
DIVERGENCE_PER_CLASS = tuple(
    row if isinstance(row, Resident) else replace(row, widest=4) for row in DIVERGENCE if row.vocab != 8192
)

SPLIT = Split(
    8192, 2, 2, 4096, 4, 64,
    "fewer rows than multiprocessors leave the others idle; two launches more cost microseconds, so only rows that "
    "do not fit one program's registers are split, and a part's walk is at least two tiles long",
)  # fmt: skip

# One tensor, of which a thread can hold twice the columns of the divergence's two. Measured only there.
SOFTMAX: tuple[Resident | Streaming, ...] = (
    Resident(16, 1, 32, "as in DIVERGENCE: no exchange between threads"),
    Resident(32, 2, 32, "as there, 16 columns per thread"),
    Resident(64, 4, 32, "as above"),
    Resident(128, 8, 32, "as above"),
    Resident(256, 16, 32, "as above"),
    Resident(1024, 32, 32, "a warp a row: no barrier, up to 32 columns per thread"),
    Resident(2048, 64, 64, "32 columns per thread: four 16-byte loads of bf16 in flight, eight of float32"),
    Resident(4096, 128, 128, "as above"),
    Resident(8192, 256, 256, "as above"),
    Resident(16384, 512, 512, "as above"),
    Streaming(UNBOUNDED, 4096, 4, 64, "two walks, one tensor: half the bytes in flight of the divergence's rows"),
)  # fmt: skip

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
