"""Who takes part in a case, each behind the same call: student logits in, output (a scalar, or rows) out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kdkernels as kd
from kdkernels.backends import KERNEL_BACKENDS, resolve

from . import auxiliary, peers, rivals
from .cases import ALPHA, Case, Inputs, loss_of

OURS, INPLACE, EAGER, COMPILED, STREAM = "kdkernels", "kdkernels inplace", "eager", "torch.compile", "torch.add"


@dataclass(frozen=True)
class Contender:
    name: str
    call: Callable[[Tensor], Tensor]
    overwrites: bool = False
    """Whether the student's buffer is lost in the call and has to be filled again before the next."""


def names(case: Case, device: str) -> list[str]:
    found = [OURS]
    if case.backward and case.scalar and not case.operation.bank:
        found.append(INPLACE)
    if case.operation.beside:
        found.append(beside(case.operation.beside))
    found += [beside(backend) for backend in others(case, device)]
    found.append(EAGER)
    if case.compiled:
        found.append(COMPILED)
    return [*found, *peers.names(case, device)]


def beside(what: str) -> str:
    """What our own operation, in the cases of another one, or our own backend, beside the one of "auto", is called."""
    return f"{OURS} {what}"


def others(case: Case, device: str) -> list[str]:
    """The kernel backends that could run a case and that "auto" does not choose."""
    place, dtypes = torch.device(device), (getattr(torch, case.dtype),)
    usual = resolve("auto", place, dtypes, torch.empty(case.rows, case.vocab, device="meta"))
    able = [
        name
        for name, kernels in KERNEL_BACKENDS.items()
        if not (kernels.unavailable() or kernels.unsupported(place, dtypes))
    ]
    return [name for name in able if name != usual]


def solved(name: str, case: Case) -> Case:
    """The case whose answer a contender has to give: this one, unless it is there for comparison."""
    other = case.operation.beside
    return replace(case, op=other) if other and name == beside(other) else case


def contender(name: str, case: Case, inputs: Inputs) -> Contender:
    """Raises what the contender's import or set-up raises."""
    task = solved(name, case)
    if name in (OURS, INPLACE) or task != case:
        return Contender(name, ours(task, inputs, name == INPLACE), name == INPLACE)
    if name.startswith(f"{OURS} "):
        return Contender(name, ours(task, inputs, backend=name.removeprefix(f"{OURS} ")))
    if name == EAGER:
        function = rivals.formula(case, inputs)
    elif name == COMPILED:
        function = torch.compile(rivals.formula(case, inputs), fullgraph=True, dynamic=False)
    else:
        function = peers.formula(name, case)
    return Contender(name, lambda student: function(student, inputs.teacher, inputs.labels))


def ours(case: Case, inputs: Inputs, inplace: bool = False, backend: str = "auto") -> Callable[[Tensor], Tensor]:
    """The public call; with backend="reference" and float64 inputs it is the oracle."""
    teacher, labels, temperature = inputs.teacher, inputs.labels, case.temperature
    if case.op == "softmax":
        return lambda student: kd.softmax(student, temperature=temperature, backend=backend)
    if case.op in ("trilateral_distances", "trilateral_class_mean"):
        mean = inputs.class_mean
        return lambda student: kd.trilateral_distances(student, teacher, labels, mean, backend=backend)
    if inputs.bank is not None:
        return auxiliary.ours(teacher, labels, inputs.bank, backend)
    options = {"temperature": temperature, "inplace": inplace, "backend": backend}
    if case.op == "distillation":
        return lambda student: kd.distillation(student, teacher, labels, alpha=ALPHA, **options)
    loss = loss_of(case.op, case.vocab, teacher.device)
    return lambda student: kd.divergence(student, teacher, loss, **options)
