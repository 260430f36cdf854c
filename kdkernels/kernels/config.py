"""How each kernel is launched: data, frozen, with the reason beside each row. Nothing is tuned at run time.

What a reason calls measured was timed on an H200 (bench/results/nvidia-h200-sm-90-forms.md); the rest was chosen
without a GPU, from the registers, spills and shared memory that the compilers report (test_triton_compile.py in
python_tests holds them to it) and from the arithmetic in the reasons. A measurement beats every reason below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, eq=False)
class Resident:
    """Rows of up to `size` bytes: a program holds rows in registers, each spread over `lanes` threads: one row where
    those are a warp or more, else as many as a warp holds."""

    size: int
    lanes: int
    reason: str


@dataclass(frozen=True, eq=False)
class Streaming:
    """Rows of up to `size` bytes: a program walks one in tiles, 16 bytes, but at most `widest` columns, to a thread.

    `tile` is their columns for two-byte and for wider logits.

    `narrow` is the number of columns per thread and tile instead where a row may not be loaded by vectors, and
    `registers` a bound per thread that is handed to ptxas (AMD's compiler derives its own from the threads).
    """

    size: int
    tile: tuple[int, int]
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
    tile: tuple[int, int]
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

# Numbers per part of a row that the launches of a split divergence exchange (divergence_split.py names them).
PARTIALS = 8

# Sizes are bytes of a row of the student. Measured on an H200 (2^28 bf16 or 2^27 float32 logits a side, value and
# gradient, as a share of torch.add's speed): forward KL in bf16, 10 columns 32 % with 2 lanes, 19 with 1 and 18 with 4;
# 100 columns 66 with 8, 47 with 4, 45 with 16; 256 83 with 16, 72 with 8, 58 with 32; 1000 71 with 32, 75 with 64, 53
# with 16; 4096 72 with 128, 61 with 256. In float32, whose rows are twice as long, 1000 columns 97 with 64, 72 with 32.
# Programs of one warp reduce without a barrier: 100 columns 66 with a program a warp, 59 with two or four warps.
DIVERGENCE: tuple[Resident | Streaming, ...] = (
    Resident(64, 2, "measured (above)"),
    Resident(128, 4, "measured, 32 float32 columns: 92 % with 4 lanes, 89 with 2"),
    Resident(256, 8, "measured (above)"),
    Resident(512, 16, "measured (above)"),
    Resident(1024, 32, "measured, 512 bf16 columns: 85 % with 32 lanes, 66 with 16"),
    Resident(2048, 32, "measured (above)"),
    Resident(4096, 64, "measured (above)"),
    Resident(8192, 128, "measured (above)"),
    Resident(16384, 256, "measured, 8192 bf16 columns: Jensen-Shannon 49 % against 40 streamed, forward KL 62 and 75"),
    Streaming(
        32768, (2048, 2048), 4, 64,
        "measured, forward KL: 16384 bf16 columns 76 % with tiles of 2048, 64 with 4096; 8192 float32 columns 80 and "
        "54",
    ),
    Streaming(
        65536, (4096, 2048), 4, 40,
        "measured, forward KL: 32000 bf16 columns 71 % with tiles of 4096 in 40 registers, which let three programs "
        "run on a multiprocessor, 66 in 64, 65 with tiles of 2048; 16384 float32 columns 80 with 2048, 66 with 4096",
    ),
    Streaming(
        UNBOUNDED, (4096, 4096), 4, 40,
        "measured, forward KL: 32000 float32 columns 72 % with tiles of 4096, 64 with 2048; 128256 bf16 columns 59 and "
        "54, Jensen-Shannon 37 in 40 registers, 36 in 64. The rows in flight exceed L2 in each form",
    ),
)  # fmt: skip

# With a table, or with a hard label as Triton 3.8 compiles it, 40 registers are too few: a dozen spill.
DIVERGENCE_WITH_MORE = tuple(row if isinstance(row, Resident) else replace(row, registers=64) for row in DIVERGENCE)

# A table with a column per class adds orders x columns loads, which the compilers start early: with more than 8 columns
# to a thread, 4 in the streaming form, 5 to 8 orders spill.
DIVERGENCE_PER_CLASS = tuple(
    replace(row, lanes=min(4 * row.lanes, max(32, row.size // 16)))
    if isinstance(row, Resident)
    else replace(row, widest=4, registers=64)
    for row in DIVERGENCE
    if row.size != 16384
)

SPLIT = Split(
    8192, 2, 2, (4096, 4096), 4, 64,
    "fewer rows than multiprocessors leave the others idle; two launches more cost microseconds, so only rows that "
    "do not fit one program's registers are split, and a part's walk is at least two tiles long",
)  # fmt: skip

_RESIDENT = tuple(row for row in DIVERGENCE if isinstance(row, Resident))

# One tensor where the divergence has two, so that a row of twice the length fits; the lanes were measured only there.
SOFTMAX: tuple[Resident | Streaming, ...] = (
    *_RESIDENT,
    Resident(32768, 512, "64 bytes of a row to a thread, as in the divergence's longest"),
    Streaming(
        UNBOUNDED, (4096, 4096), 4, 64, "two walks, one tensor: half the bytes in flight of the divergence's rows"
    ),
)

# Two tiles, one walk over each before the gradient: the divergence's lengths hold.
SOFTMAX_BACKWARD: tuple[Resident | Streaming, ...] = (
    *_RESIDENT,
    Streaming(UNBOUNDED, (4096, 4096), 4, 64, "28 to 56 registers: two programs of 512 threads or more per SM"),
)

# Two tiles, three with a class mean, of which nothing is written: the divergence's lengths hold, but for 1000 float32
# columns. In a warp they take 39 instructions a column and no barrier, in two 57 and 29 barriers: a row has 10 to 13
# reductions.
TRILATERAL: tuple[Resident | Streaming, ...] = tuple(
    replace(row, lanes=32, reason="no barriers (above)") if isinstance(row, Resident) and row.size == 4096 else row
    for row in SOFTMAX_BACKWARD
)

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


def choose(table: tuple[Resident | Streaming, ...], size: int) -> Resident | Streaming:
    for row in table:
        if size <= row.size:
            return row
    raise ValueError(f"no row of the table takes {size} bytes")
