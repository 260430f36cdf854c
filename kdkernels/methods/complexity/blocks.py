"""A Gram matrix some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_ROWS = 1024
"""So many that their products are matrix products, so few that no second (N, N) is made to look at the first."""


def blocks(gram: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows that follow one another, and the number of the first of them."""
    for start in range(0, len(gram), _ROWS):
        yield start, gram[start : start + _ROWS]
