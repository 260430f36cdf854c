"""What a trilateral kernel is given."""

from typing import NamedTuple


class Tensors(NamedTuple):
    """(rows, vocab) tensors and the (vocab, vocab) class mean, pointers in a kernel."""

    student: object
    teacher: object
    class_mean: object  # None: three distances, and no code for the others is generated
    gradient: object  # None in forward


class Strides(NamedTuple):
    """Row strides in vectors."""

    student: int
    teacher: int
    class_mean: int
    gradient: int


class PerRow(NamedTuple):
    """labels (rows,) int64; distances and upstream (rows, 3 or 5), statistics (rows, 10): float32, contiguous."""

    labels: object
    distances: object
    statistics: object  # None: no gradient is wanted
    upstream: object  # None in forward
