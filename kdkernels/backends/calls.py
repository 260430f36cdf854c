"""One call of each schedule as a record, the same from the public function through the operator to the kernel.

What is a matrix (both sides, gradients, class means) is an argument beside the record; the record holds what else a
call has. A new setting is one line here and its use: schemas and packing are made from the fields (ops/wire.py).
Fields that are tensors come first.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

PerRow = Annotated[Tensor | None, "one element per row, (rows,)"]


class Divergence(NamedTuple):
    labels: PerRow = None
    """int64; None drops the cross-entropy."""
    soft_weight: PerRow = None
    """In the dtype of the arithmetic, as the next; None is 1."""
    hard_weight: PerRow = None
    table: Tensor | None = None
    """`Loss.table` in the dtype of the arithmetic."""
    loss: str = ""
    """`Loss.name`."""
    parameter: float = 0.0
    temperature: float = 1.0
    soft_scale: float = 1.0
    hard_scale: float = 1.0
    vocab: int | None = None
    """How many columns of both sides count; None: all. A backend gets both sides already cut to them."""
    reduce: bool = False
    """Whether the operator sums the rows' values; a backend never does."""
    backend: str = ""


class Softmax(NamedTuple):
    temperature: float = 1.0
    log: bool = False
    backend: str = ""


class Trilateral(NamedTuple):
    labels: PerRow = None
    """int64, never None."""
    squared: bool = False
    ignore_index: int = -100
    vocab: int | None = None
    """As in `Divergence`; the class means are cut to it too."""
    backend: str = ""
