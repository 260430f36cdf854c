"""How the record of a call crosses the dispatcher: schema, packing and unpacking, all made from its fields."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_type_hints

from torch import Tensor

from ..backends.calls import PerRow
from ..rows import vector
from .shared import in_tensor

Call = TypeVar("Call", bound=tuple)

_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    str: "str",
    bool: "bool",
    int: "int",
    int | None: "SymInt?",  # a size: None where it is the whole width, so that a graph holds no number for it
}


class Wire(Generic[Call]):
    """The arguments of an operator that stand for a record; its floats travel in one tensor (`in_tensor` says why)."""

    def __init__(self, record: type[Call]) -> None:
        hints, marked = get_type_hints(record), get_type_hints(record, include_extras=True)
        fields: tuple[str, ...] = record._fields  # type: ignore[attr-defined]
        self.record = record
        self.numbers = [name for name in fields if hints[name] is float]
        self.others = [name for name in fields if hints[name] is not float]
        self.per_row = [name for name in fields if marked[name] == PerRow]
        self.tensors = sum("Tensor" in _TYPES.get(hints[name], "") for name in fields)
        """So many fields, the first ones, are tensors or None."""
        self.schema = ", ".join(f"{_TYPES[hints[name]]} {name}" for name in self.others)
        if self.numbers:
            self.schema += ", Tensor numbers"
        self.arguments = self.schema.count(",") + 1

    def pack(self, call: Call) -> tuple:
        """The operator's arguments."""
        packed = tuple(getattr(call, name) for name in self.others)
        return (*packed, in_tensor(*(getattr(call, name) for name in self.numbers))) if self.numbers else packed

    def unread(self, arguments: tuple) -> Call:
        """The record without its numbers, which a fake tensor does not tell."""
        return self.record(**dict(zip(self.others, arguments, strict=False)))

    def unpack(self, arguments: tuple) -> Call:
        call = self.unread(arguments)
        if not self.numbers:
            return call
        numbers = arguments[-1].tolist()
        if not isinstance(numbers, list) or len(numbers) != len(self.numbers):
            raise ValueError(f"numbers must hold {', '.join(self.numbers)}, got shape {tuple(arguments[-1].shape)}")
        return call._replace(**dict(zip(self.numbers, map(float, numbers), strict=True)))  # type: ignore[attr-defined]

    def piece(self, call: Call, rows: slice) -> Call:
        """The part of a call that belongs to some of the rows."""
        parts = {name: getattr(call, name) for name in self.per_row}
        cut = {name: tensor[rows] for name, tensor in parts.items() if tensor is not None}
        return call._replace(**cut)  # type: ignore[attr-defined]

    def addressable(self, call: Call) -> Call:
        """The call with every tensor as kernels read it; the same record where nothing had to be done."""
        for tensor in call[: self.tensors]:
            if tensor is not None and vector(tensor) is not tensor:
                ready = (None if each is None else vector(each) for each in call[: self.tensors])
                return self.record(*ready, *call[self.tensors :])
        return call

    def without_tensors(self, call: Call) -> Call:
        return self.record(*[None] * self.tensors, *call[self.tensors :])

    def with_tensors(self, call: Call, tensors: Any) -> Call:
        return self.record(*tensors, *call[self.tensors :])
