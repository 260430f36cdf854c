"""One timed step of a contender, and what it hands back when it is run to be checked.

Forward: the call under no_grad, and freeing what it returned. Forward + backward: the call, autograd's backward pass
as far as the logits, and freeing everything. The logits are not a leaf: they are the output of `_Source`, an autograd
node over the case's own buffer that is made, without a copy, before the clock starts. ``torch.autograd.grad`` stops at
that node's edge, so nothing of the scaffold runs inside the timing, nobody's timing holds a pass over a (rows x vocab)
tensor that its call did not cause, and a contender may overwrite its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .cases import Case, Inputs
from .contenders import Contender

Argument = tuple[Tensor, GradientEdge | None]


class _Source(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor) -> Tensor:
        # Not a view: autograd forbids that the view of a leaf, or of a custom function's input, is written in place.
        return torch.empty(0, dtype=logits.dtype, device=logits.device).set_(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        raise RuntimeError("the backward pass went past the logits")


@dataclass
class Step:
    case: Case
    inputs: Inputs
    contender: Contender
    _anchor: Tensor = field(init=False)
    _buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        student = self.inputs.student
        self._anchor = torch.zeros(1, device=student.device, requires_grad=True)
        self._buffer = torch.empty_like(student) if self.contender.overwrites else student

    def prepare(self) -> Argument:
        """Before the clock: the logits of one step, filled again if the last step has overwritten them."""
        if self.contender.overwrites:
            self._buffer.copy_(self.inputs.student)
        if not self.case.backward:
            return self._buffer, None
        student = _Source.apply(self._anchor, self._buffer)
        return student, get_gradient_edge(student)  # taken now: an inplace call moves the tensor down the graph

    def run(self) -> Callable[[Argument], None]:
        """What is timed."""
        call, upstream = self.contender.call, self.inputs.upstream

        def forward(argument: Argument) -> None:
            with torch.no_grad():
                call(argument[0])

        def both(argument: Argument) -> None:
            torch.autograd.grad(call(argument[0]), argument[1], upstream)

        return both if self.case.backward else forward

    def outcome(self) -> tuple[Tensor, Tensor | None]:
        """The output and the student's gradient of one step, by the same route as the timed one."""
        student, edge = self.prepare()
        if edge is None:
            with torch.no_grad():
                return self.contender.call(student), None
        output = self.contender.call(student)
        (gradient,) = torch.autograd.grad(output, edge, self.inputs.upstream)
        return output.detach(), gradient
