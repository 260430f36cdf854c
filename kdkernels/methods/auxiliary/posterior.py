"""The posterior over a bank's instances, rows by rows: unit features, similarities, own entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ... import api, checks

SHORTEST = 1e-30
"""A feature without an entry as large as this has no direction: it counts as zero, and its gradient is zero."""

# Similarities held at a time, rows x entries: a cache of 32 MiB holds as many. But a product packs the bank anew each
# time. Measured on two AVX-512 cores, 16384 entries, batch 256, forward and backward: by 32 rows 81 ms, by 64 60 ms, by
# 128 50 ms, by 256 45 ms, of which some 37 ms are products. So 256 rows at least, also where the bank is larger.
# Elsewhere launches count and the cache does not (unmeasured).
_ON_CPU, _ELSEWHERE = 1 << 22, 1 << 24
_FEWEST_ROWS = 256


class Entries(NamedTuple):
    """What is in a bank, in the dtype of the arithmetic."""

    features: Tensor
    """(n, dim), unit rows"""
    probs: Tensor
    """(n, C)"""
    index: Tensor
    """(n,) int64"""


def unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, dim) at length 1, and the length that each had, (B, 1): infinite where it has no direction.

    Squares are taken of what the largest entry divides: they neither overflow nor vanish.
    """
    largest = features.abs().amax(-1, keepdim=True)
    largest = torch.where(largest < SHORTEST, torch.inf, largest)
    scaled = features / largest
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_(min=1.0)  # 0 where there is no direction
    return scaled / norm, largest * norm


def chunks(rows: int, entries: Entries) -> Iterator[slice]:
    """Slices of a batch, each of so many rows that rows x entries stays small; an empty batch has an empty one."""
    held = _ON_CPU if entries.index.device.type == "cpu" else _ELSEWHERE
    size = max(_FEWEST_ROWS, held // len(entries.index))
    return (slice(start, start + size) for start in range(0, max(rows, 1), size))


class Own:
    """Which entries are the samples' own: those of the same number."""

    def __init__(self, index: Tensor, entries: Entries) -> None:
        self.index, self.dtype = index, entries.features.dtype
        # All entries are one sample's where the least number is the largest: no look at (B, n) is needed.
        low, high = torch.aminmax(entries.index)
        self.others = (index != low) | (index != high)
        """(B,) whether a row has an entry of another sample"""
        # Few entries are anyone's of the batch: to be told which would be to wait for a device.
        few = checks.readable(index)
        self.columns = torch.isin(entries.index, index).nonzero().squeeze(-1) if few else None
        self.numbers = entries.index[self.columns] if few else entries.index

    def excluder(self, part: slice) -> Callable[[Tensor], None]:
        """What sets the own entries of these rows to -inf in similarities (rows, n), in place."""
        own = self.index[part].unsqueeze(-1) == self.numbers
        if self.columns is None:
            return lambda similarities: similarities.masked_fill_(own, -torch.inf)
        rows, places = own.nonzero(as_tuple=True)
        where, nothing = (rows, self.columns[places]), self.others.new_full((), -torch.inf, dtype=self.dtype)
        return lambda similarities: similarities.index_put_(where, nothing)

    def zeros(self, values: Tensor, part: slice) -> Tensor:
        """The values (rows, ...), 0 where no entry is another's: the softmax over such a row is NaN."""
        return torch.where(self.others[part].unsqueeze(-1), values, 0.0)


def posterior(features: Tensor, entries: Entries, index: Tensor | None, kappa: float) -> Tensor:
    """p_aux, (B, C) in the dtype of the entries; a row of zeros where every entry is the sample's own."""
    features = features.to(entries.features.dtype)
    unit, _ = unit_rows(features)
    own = None if index is None else Own(index, entries)
    found = [_found(unit[part], entries, own, part, kappa) for part in chunks(len(unit), entries)]
    return torch.cat(found)


def _found(unit: Tensor, entries: Entries, own: Own | None, part: slice, kappa: float) -> Tensor:
    similarities = unit @ entries.features.T
    if own is None:
        return api.softmax(similarities, temperature=kappa) @ entries.probs
    own.excluder(part)(similarities)
    return own.zeros(api.softmax(similarities, temperature=kappa) @ entries.probs, part)
