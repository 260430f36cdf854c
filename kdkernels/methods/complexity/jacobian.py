"""The Jacobian of a model, a group of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .evaluation import Evaluated


class Part(NamedTuple):
    """The entries start..stop of a parameter, laid out flat."""

    name: str
    start: int
    stop: int


Group = tuple[Part, ...]
"""Columns of the Jacobian that are differentiated together."""


def width(group: Group) -> int:
    return sum(part.stop - part.start for part in group)


def groups(sizes: dict[str, int], limit: int) -> list[Group]:
    """All entries of all parameters, in groups of `limit` but for the last.

    Groups are filled to the brim, splitting a parameter where one is full: each group costs a forward pass of the
    model, so that few groups matter more than whole parameters.
    """
    found: list[Group] = []
    group: list[Part] = []
    room = limit
    for name, size in sizes.items():
        start = 0
        while start < size:
            stop = min(size, start + room)
            group.append(Part(name, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                found.append(tuple(group))
                group, room = [], limit
    return [*found, tuple(group)] if group else found


class Walk:
    """The rows of J for a group, example by example.

    At most `chunk` examples are differentiated at once, and fewer where the gradients of all their outputs would take
    more than `memory` bytes: a part of a parameter takes the gradient of the whole parameter.
    """

    def __init__(self, function: Evaluated, inputs: tuple[Tensor, ...], chunk: int, memory: int) -> None:
        self.function, self.inputs, self.chunk, self.memory = function, inputs, chunk, memory

    def fill(self, block: Tensor, group: Group) -> Iterator[int]:
        """J of the group into block (n * width of outputs, width of the group); yields how many examples it did."""
        function = self.function
        touched = {part.name: function.weights[part.name] for part in group}
        row = sum(each.numel() * each.element_size() for each in touched.values())
        row += sum((part.stop - part.start) * touched[part.name].element_size() for part in group)
        pairs = max(1, self.memory // row)
        step = max(1, min(self.chunk, pairs // function.width))
        rows = vmap(self._rows(touched, group, min(function.width, pairs)))
        for start, several in self._chunks(step):
            part = block[start * function.width : (start + len(several[0])) * function.width]
            part.copy_(rows(*several).reshape(part.shape))
            yield len(several[0])

    def _chunks(self, step: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        for start in range(0, len(self.inputs[0]), step):
            yield start, tuple(each[start : start + step] for each in self.inputs)

    def _rows(self, touched: dict[str, Tensor], group: Group, outputs: int) -> Callable[..., Tensor]:
        """(example) -> (outputs, width of the group), so many outputs at once."""
        function = self.function

        def rows(*example: Tensor) -> Tensor:
            def partial(weights: dict[str, Tensor]) -> Tensor:
                return function.one({**function.weights, **weights}, example)

            value, pull = vjp(partial, touched)

            def row(upstream: Tensor) -> Tensor:
                (gradient,) = pull(upstream)
                return torch.cat([gradient[name].reshape(-1)[start:stop] for name, start, stop in group])

            unit = torch.eye(function.width, dtype=value.dtype, device=value.device)
            return vmap(row, chunk_size=outputs)(unit)

        return rows
