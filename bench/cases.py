"""What is timed: the operations, shapes, dtypes and modes, and the tensors that every contender of a case shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import kdkernels as kd
from kdkernels.methods.auxiliary import InstanceBank

from . import auxiliary

SHAPES = ((128, 1000), (4096, 100), (1024, 10), (512, 32000), (256, 128256))
DTYPES = ("float32", "bfloat16")
FORWARD, BOTH = "forward", "forward+backward"

# The losses with a speed target over torch.compile run everywhere; the others on one shape of rows that fit in a
# register file or L1 and on one whose rows do not: the walk is the same code for all of them.
HEADLINE = ("forward_kl", "jensen_shannon")
SAMPLE_SHAPES = ((4096, 100), (512, 32000))
QUICK_SHAPES = ((128, 1000), (1024, 10), (512, 32000))

ALPHA = 0.9

# Five orders, the paper's choice, drawn once from its range U[-1, 10].
_SHARED_COEFFICIENTS = (4.459, 7.450, -0.027, 0.452, 2.382)
_ORDERS = len(_SHARED_COEFFICIENTS)

# A case repeats this many different rows, so that the float64 answer for all of its rows costs only these. All rows
# lie at addresses of their own: memory and caches see no difference. (Of a table of class means they read this many
# rows: on the shapes that have one it would stay in a cache anyway.)
DISTINCT_ROWS = 16

# The standard run leaves out what its other numbers tell already: where float32 is measured in both modes, a bfloat16
# value differs from its gradient as it does there.
_EVERY = tuple((dtype, mode) for dtype in DTYPES for mode in (BOTH, FORWARD))
_NO_HALF_FORWARD = (("float32", BOTH), ("float32", FORWARD), ("bfloat16", BOTH))
_FLOAT32 = (("float32", BOTH), ("float32", FORWARD))


@dataclass(frozen=True)
class Operation:
    """How an operation is measured; the defaults are a loss's."""

    shapes: tuple[tuple[int, int], ...] = SAMPLE_SHAPES
    runs: tuple[tuple[str, str], ...] = _EVERY
    """(dtype, mode) of the standard run."""
    compiled_from: int = 32000
    """The vocabulary from which torch.compile takes part in float32: cold, it takes longer than most cases do."""
    # Divergences run at temperature 1, which spares the plain rivals a pass; those made for another one at 2. That is
    # a power of two: dividing bfloat16 logits by it is exact, so that no rival is charged for a rounding.
    temperature: float = 1.0
    columns: int | Literal["vocab"] | None = None
    """Of an output with a row for each row, whose backward is given a tensor; None: a scalar, given 1."""
    class_mean: bool = False
    """Whether it is given a (vocab, vocab) table."""
    bank: bool = False
    """Whether its vocabulary are the entries of a bank: `bench.auxiliary`."""
    beside: str | None = None
    """Another of our losses that takes part in the same rounds, for what this one adds to it."""


_TRILATERAL_SHAPES = ((128, 100), (4096, 100), (512, 32000), (256, 128256))
_CLASS_MEAN_SHAPES = ((128, 100), (4096, 100), (128, 1000))
_LARGEST_CLASS_MEAN = 1000

OPERATIONS: dict[str, Operation] = {
    **{name: Operation(SHAPES, compiled_from=0) if name in HEADLINE else Operation() for name in kd.LOSSES},
    "perturbed": Operation((*SAMPLE_SHAPES, (256, 128256)), _NO_HALF_FORWARD, beside="forward_kl"),
    "perturbed_per_class": Operation(runs=_NO_HALF_FORWARD, beside="forward_kl"),
    "distillation": Operation(temperature=2.0),
    "softmax": Operation(temperature=2.0, columns="vocab"),
    "trilateral_distances": Operation(_TRILATERAL_SHAPES, _NO_HALF_FORWARD, compiled_from=0, columns=3),
    "trilateral_class_mean": Operation(_CLASS_MEAN_SHAPES, _FLOAT32, compiled_from=0, columns=5, class_mean=True),
    "auxiliary_divergence": Operation(((256, 16384),), _FLOAT32[:1], compiled_from=0, bank=True),
}


# On a GPU: rows enough to fill it, in the dtype of its users, and a few long ones that alone do not.
GPU_SHAPES = ((4096, 100), (8192, 1000), (8192, 32000), (4096, 128256), (16, 128256))
GPU_SAMPLE_SHAPES = ((8192, 1000), (8192, 32000))
GPU_RUNS = (("bfloat16", BOTH), ("bfloat16", FORWARD), ("float32", BOTH))


def shapes_of(op: str, device: str) -> tuple[tuple[int, int], ...]:
    """The shapes of an operation in the standard run of a device."""
    if device == "cpu":
        return OPERATIONS[op].shapes
    return GPU_SHAPES if op in HEADLINE else GPU_SAMPLE_SHAPES


@dataclass(frozen=True)
class Case:
    op: str
    rows: int
    vocab: int
    dtype: str
    mode: str
    compiled: bool
    """Whether torch.compile takes part."""

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.op]

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
        return self.operation.temperature

    @property
    def scalar(self) -> bool:
        return self.operation.columns is None

    @property
    def output(self) -> tuple[int, str]:
        """(columns, dtype) of an output of rows. What has the logits' shape has their dtype, the rest is float32."""
        columns = self.operation.columns
        return (self.vocab, self.dtype) if columns == "vocab" else (columns or 0, "float32")

    @property
    def tensor_bytes(self) -> int:
        return self.rows * self.vocab * getattr(torch, self.dtype).itemsize

    @property
    def units(self) -> int:
        """(rows x vocab) tensors that have to be read or written: the floor of the traffic."""
        if self.operation.bank:  # products take its time, and they make one of a few rows at a time
            return 0
        if not self.backward:  # both logits in; softmax: logits in, output out
            return 2
        # A scalar's gradient is written in the walk that reads the logits. With rows, backward waits for its upstream
        # tensor: both logits in again (softmax: output and upstream), gradient out. Tables are small beside these.
        return 3 if self.scalar else 5


@dataclass(frozen=True)
class Inputs:
    student: Tensor
    """(rows, vocab) logits, never written to."""
    teacher: Tensor
    labels: Tensor
    upstream: Tensor | None
    """What backward is given for an output of rows, of its shape and dtype; None where the output is a scalar."""
    class_mean: Tensor | None = None
    """(vocab, vocab) float32 for the operations that read one."""
    bank: InstanceBank | None = None


def loss_of(op: str, vocab: int, device: torch.device | str = "cpu") -> kd.Loss:
    """The loss that a divergence is measured with. Its coefficients, if it has any, lie on the device."""
    if op == "perturbed":
        return kd.Perturbed(torch.tensor(_SHARED_COEFFICIENTS, device=device))
    if op == "perturbed_per_class":
        drawn = torch.empty(vocab, _ORDERS).uniform_(-1.0, 10.0, generator=torch.Generator().manual_seed(vocab))
        # -1/m is where a coefficient of order m turns the series' sign, and where the loss begins to warn.
        return kd.Perturbed(torch.maximum(drawn, -1.0 / torch.arange(1, _ORDERS + 1)).to(device))
    return kd.LOSSES[op]()


def cases(everything: bool = False) -> list[Case]:
    """The standard run, or every operation x shape x dtype x mode with torch.compile in all of them."""
    chosen = []
    for op, operation in OPERATIONS.items():
        for rows, vocab in _every_shape(operation) if everything else operation.shapes:
            for dtype, mode in _EVERY if everything else operation.runs:
                compiled = everything or _compiled(op, vocab, dtype, mode)
                chosen.append(Case(op, rows, vocab, dtype, mode, compiled))
    return chosen


def gpu_cases() -> list[Case]:
    """The standard run on a GPU. torch.compile takes part in the headline losses' bfloat16 gradients."""
    chosen = []
    for op, operation in OPERATIONS.items():
        for rows, vocab in shapes_of(op, "cuda"):
            if operation.class_mean and vocab > _LARGEST_CLASS_MEAN:
                continue
            for dtype, mode in GPU_RUNS if op in HEADLINE else GPU_RUNS[:1]:
                compiled = op in HEADLINE and dtype == "bfloat16" and mode == BOTH
                chosen.append(Case(op, rows, vocab, dtype, mode, compiled))
    return chosen


def _every_shape(operation: Operation) -> list[tuple[int, int]]:
    shapes = dict.fromkeys((*operation.shapes, *SHAPES))
    return [shape for shape in shapes if not operation.class_mean or shape[1] <= _LARGEST_CLASS_MEAN]


def _compiled(op: str, vocab: int, dtype: str, mode: str) -> bool:
    if dtype == "float32":
        return vocab >= OPERATIONS[op].compiled_from
    return op in HEADLINE and mode == BOTH and vocab >= 32000


def quick_cases() -> list[Case]:
    """A look in less than a minute: float32, forward and backward, nothing to compile."""
    return [
        Case(op, rows, vocab, "float32", BOTH, False)
        for op in OPERATIONS
        for rows, vocab in (QUICK_SHAPES if op in HEADLINE else QUICK_SHAPES[:1])
    ]


def inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(case.rows + case.vocab)
    dtype = getattr(torch, case.dtype)

    def tiled(rows: Tensor) -> Tensor:
        return rows.to(device).repeat(case.rows // DISTINCT_ROWS, *(1,) * (rows.dim() - 1))

    columns = auxiliary.COLUMNS if case.operation.bank else case.vocab
    student = 3.0 * torch.randn(DISTINCT_ROWS, columns, generator=generator)
    teacher = student + torch.randn(DISTINCT_ROWS, columns, generator=generator)
    labels = torch.randint(case.vocab, (DISTINCT_ROWS,), generator=generator)
    upstream = class_mean = None
    if not case.scalar:
        columns, stored = case.output
        upstream = tiled(torch.randn(DISTINCT_ROWS, columns, generator=generator).to(getattr(torch, stored)))
    if case.operation.class_mean:
        class_mean = torch.softmax(3.0 * torch.randn(case.vocab, case.vocab, generator=generator), -1).to(device)
    bank = auxiliary.bank(case.vocab, generator, device) if case.operation.bank else None
    return Inputs(tiled(student.to(dtype)), tiled(teacher.to(dtype)), tiled(labels), upstream, class_mean, bank)
