"""How each kernel is launched: data, frozen, with the reason beside each row. Nothing is tuned at run time.

What a reason calls measured was timed on an H200 (bench/results); the rest was chosen without a GPU, from the
registers, spills and shared memory that the compilers report (python_tests/test_triton_compile.py holds them to it)
and from the arithmetic in the reasons. A measurement beats every reason below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Resident:
    """Rows of up to `vocab` columns: a program of `threads` threads holds rows in registers, each spread over `lanes` of
    them: one row where the lanes are all threads, else as many as fill them."""

    vocab: int
    lanes: int
    threads: int
    reason: str


@dataclass(frozen=True)
class Streaming:
    """Rows of up to `vocab` columns: a program walks one in tiles of `tile` columns, 16 bytes of the first tensor, but at
    most `widest` columns, to a thread.

    `narrow` is the number of columns per thread and tile instead where a row may not be loaded by vectors, and
    `registers` a bound per thread that is handed to ptxas (AMD's compiler derives its own from the threads).
    """

    vocab: int
    tile: int
    narrow: int
    registers: int
    reason: str
    widest: int = 8


@dataclass(frozen=True)
class OldResident:
    """Rows of up to `vocab` columns: a program holds `rows` of them in registers, spread over `threads` threads."""

    vocab: int
    rows: int
    threads: int
    reason: str


@dataclass(frozen=True)
class OldStreaming:
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

_OLD: tuple[OldResident | OldStreaming, ...] = (
    OldResident(16, 32, 128, "4 columns per thread: unaligned rows (vocab 10) keep one predicate per element"),
    OldResident(32, 16, 128, "as above"),
    OldResident(64, 8, 128, "as above; a warp covers whole rows, reductions are shuffles"),
    OldResident(128, 4, 128, "as above; CIFAR-100's 100 columns"),
    OldResident(256, 4, 128, "8 columns per thread: one 16-byte load of bf16, two of float32"),
    OldResident(512, 2, 128, "as above"),
    OldResident(1024, 2, 256, "as above; 1000 columns of ImageNet, whose rows are not aligned to 16 elements"),
    OldResident(2048, 1, 256, "as above; from here a row alone feeds a program"),
    OldResident(4096, 1, 512, "as above; two programs per SM, so that one loads while the other reduces"),
    OldResident(8192, 1, 512, "16 columns per thread: 1024 threads may use 64 registers, 8 bytes too few (skew reverse)"),
    OldStreaming(
        65536, 512, 4, 64,
        "at most 64 registers: two programs or more per SM overlap each other's reductions; the rows in flight on 132 "
        "SMs, 2 x 132 x 256 KiB of bf16 at 65536 columns, are re-read mostly from L2 (50 MiB on H100) and L1",
    ),
    OldStreaming(
        UNBOUNDED, 1024, 4, 64,
        "1024 threads of 33 to 64 registers are one program per SM: at 128256 columns of bf16 132 rows in flight are "
        "66 MiB, about what L2 and the L1s of an H100 hold; two programs per SM would be twice that",
    ),
)  # fmt: skip

# One tile lives at a time, so twice the columns per thread of DIVERGENCE and a row of twice the length.
SOFTMAX: tuple[OldResident | OldStreaming, ...] = (
    OldResident(16, 64, 128, "8 columns per thread"),
    OldResident(64, 16, 128, "as above"),
    OldResident(128, 8, 128, "as above"),
    OldResident(512, 4, 128, "16 columns per thread: two 16-byte loads of bf16 in flight"),
    OldResident(1024, 2, 128, "as above"),
    OldResident(2048, 1, 128, "as above"),
    OldResident(4096, 1, 256, "as above"),
    OldResident(8192, 1, 512, "as above"),
    OldResident(16384, 1, 1024, "as above; 1024 threads may use 64 registers each"),
    OldStreaming(UNBOUNDED, 512, 4, 64, "two walks, one tensor: half the bytes in flight of the divergence's rows"),
)

# Two tiles, one walk over each before the gradient: the divergence's lengths hold.
SOFTMAX_BACKWARD = _OLD

# Two tiles, three with a class mean, of which nothing is written: the divergence's lengths hold.
TRILATERAL = _OLD

SCALE = Tiled(
    1024, 32, 128,
    "small programs, because with a factor of 1 a launch costs the programs' start and nothing else: 16 of them fit an "
    "SM, and 32 tiles each keep 4096 x 128256 elements at 16384 programs",
)  # fmt: skip

TRILATERAL_BACKWARD = Tiled(
    256, 32, 64,
    "few elements and threads, because a thread holds up to 14 numbers of each row that it has a part of: with 128 "
    "threads, each a part of 4 rows of 100 columns, gfx942 spills; 32 tiles share a row's numbers",
)  # fmt: skip


def choose(table: tuple, vocab: int) -> Any:
    return next(row for row in table if vocab <= row.vocab)
