"""What is timed: the operations, shapes, dtypes and modes, and the tensors that every contender of a case shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import kdkernels as kd

SHAPES = ((128, 1000), (4096, 100), (1024, 10), (512, 32000), (256, 128256))
DTYPES = ("float32", "bfloat16")
FORWARD, BOTH = "forward", "forward+backward"

# The losses with a speed target run everywhere; the others on one shape of rows that fit in a register file or L1 and
# on one whose rows do not: the walk is the same code for all of them.
HEADLINE = ("forward_kl", "jensen_shannon")
SAMPLE_SHAPES = ((4096, 100), (512, 32000))
QUICK_SHAPES = ((128, 1000), (1024, 10), (512, 32000))

# Divergences run at temperature 1, which spares the plain rivals a pass; the other two at 2, which they are made for.
# 2 is a power of two: dividing bfloat16 logits by it is exact, so that no rival is charged for a rounding.
TEMPERATURES = {"distillation": 2.0, "softmax": 2.0}
ALPHA = 0.9

# A case repeats this many different rows, so that the float64 answer for all of its rows costs only these. All rows
# lie at addresses of their own: memory and caches see no difference.
DISTINCT_ROWS = 16


@dataclass(frozen=True)
class Case:
    op: str
    rows: int
    vocab: int
    dtype: str
    mode: str
    compiled: bool
    """Whether torch.compile takes part: a cold compilation takes longer than most cases do."""

    @property
    def backward(self) -> bool:
        return self.mode == BOTH

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.vocab}"

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype} {self.mode}"

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.op, 1.0)

    @property
    def tensor_bytes(self) -> int:
        return self.rows * self.vocab * getattr(torch, self.dtype).itemsize

    @property
    def units(self) -> int:
        """(rows x vocab) tensors that have to be read or written: the floor of the traffic."""
        if self.op == "softmax":  # logits in, output out; output and upstream in, gradient out
            return 5 if self.backward else 2
        return 3 if self.backward else 2


@dataclass(frozen=True)
class Inputs:
    student: Tensor
    """(rows, vocab) logits, never written to."""
    teacher: Tensor
    labels: Tensor
    upstream: Tensor | None
    """(rows, vocab): what softmax's backward is given; None where the output is a scalar."""


def operations() -> tuple[str, ...]:
    return (*kd.LOSSES, "distillation", "softmax")


def cases(everything: bool = False) -> list[Case]:
    """The standard run, or every operation x shape x dtype x mode with torch.compile in all of them."""
    chosen = []
    for op in operations():
        shapes = SHAPES if everything or op in HEADLINE else SAMPLE_SHAPES
        for rows, vocab in shapes:
            for dtype in DTYPES:
                for mode in (BOTH, FORWARD):
                    compiled = everything or _compiled(op, vocab, dtype, mode)
                    chosen.append(Case(op, rows, vocab, dtype, mode, compiled))
    return chosen


def _compiled(op: str, vocab: int, dtype: str, mode: str) -> bool:
    if op in HEADLINE:
        return dtype == "float32" or (mode == BOTH and vocab >= 32000)
    return vocab >= 32000 and dtype == "float32"


def quick_cases() -> list[Case]:
    """A look in less than a minute: float32, forward and backward, nothing to compile."""
    return [
        Case(op, rows, vocab, "float32", BOTH, False)
        for op in operations()
        for rows, vocab in (QUICK_SHAPES if op in HEADLINE else QUICK_SHAPES[:1])
    ]


def inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(case.rows + case.vocab)
    dtype = getattr(torch, case.dtype)

    def tiled(rows: Tensor) -> Tensor:
        return rows.to(device).repeat(case.rows // DISTINCT_ROWS, *(1,) * (rows.dim() - 1))

    student = 3.0 * torch.randn(DISTINCT_ROWS, case.vocab, generator=generator)
    teacher = student + torch.randn(DISTINCT_ROWS, case.vocab, generator=generator)
    labels = torch.randint(case.vocab, (DISTINCT_ROWS,), generator=generator)
    upstream = None
    if case.op == "softmax":
        upstream = tiled(torch.randn(DISTINCT_ROWS, case.vocab, generator=generator).to(dtype))
    return Inputs(tiled(student.to(dtype)), tiled(teacher.to(dtype)), tiled(labels), upstream)
