"""Who takes part in a case, each behind the same call: student logits in, output (a scalar, or softmax's rows) out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import kdkernels as kd

from . import peers, rivals
from .cases import ALPHA, Case, Inputs

OURS, INPLACE, EAGER, COMPILED, STREAM = "kdkernels", "kdkernels inplace", "eager", "torch.compile", "torch.add"


@dataclass(frozen=True)
class Contender:
    name: str
    call: Callable[[Tensor], Tensor]
    overwrites: bool = False
    """Whether the student's buffer is lost in the call and has to be filled again before the next."""


def names(case: Case, device: str) -> list[str]:
    ours = [OURS, INPLACE] if case.backward and case.op != "softmax" else [OURS]
    return [*ours, EAGER, *([COMPILED] if case.compiled else []), *peers.names(case, device)]


def contender(name: str, case: Case, inputs: Inputs) -> Contender:
    """Raises what the contender's import or set-up raises."""
    if name in (OURS, INPLACE):
        return Contender(name, ours(case, inputs, name == INPLACE), name == INPLACE)
    if name == EAGER:
        function = rivals.formula(case)
    elif name == COMPILED:
        function = torch.compile(rivals.formula(case), fullgraph=True, dynamic=False)
    else:
        function = peers.formula(name, case)
    return Contender(name, lambda student: function(student, inputs.teacher, inputs.labels))


def ours(case: Case, inputs: Inputs, inplace: bool = False, backend: str = "auto") -> Callable[[Tensor], Tensor]:
    """The public call; with backend="reference" and float64 inputs it is the oracle."""
    teacher, labels, temperature = inputs.teacher, inputs.labels, case.temperature
    if case.op == "softmax":
        return lambda student: kd.softmax(student, temperature=temperature, backend=backend)
    options = {"temperature": temperature, "inplace": inplace, "backend": backend}
    if case.op == "distillation":
        return lambda student: kd.distillation(student, teacher, labels, alpha=ALPHA, **options)
    loss = kd.LOSSES[case.op]()
    return lambda student: kd.divergence(student, teacher, loss, **options)
