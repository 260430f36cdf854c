"""Strategies for unusual calls: the same mathematical values in tensors that a kernel cannot read by address, numbers
of other packages, and calls from unusual surroundings.

The rule: right to the last digit that the tolerance asks for, or a documented exception; for what the docstrings
promise (`Exotic.promised`), right.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from fuzz_calls import Call, legal
from fuzz_check import check_kind, run
from fuzz_choices import Choices
from fuzz_faults import Legal
from fuzz_guises import GUISES
from fuzz_illegal import DOCUMENTED, INSIDES
from fuzz_known_open import KNOWN_OPEN
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class NoFunction(TorchFunctionMode):
    """A mode that changes nothing: users' loggers and debuggers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class NoDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class _Default(AbstractContextManager):
    """A default of PyTorch's changed for a block."""

    def __init__(self, change: Callable, usual: object, now: object) -> None:
        self._change, self._usual, self._now = change, usual, now

    def __enter__(self) -> None:
        self._change(self._now)

    def __exit__(self, *error: object) -> None:
        self._change(self._usual)


_HOOKS = torch.autograd.graph.saved_tensors_hooks
NUMBERS: dict[str, Callable[[Call], object]] = {
    "temperature": lambda call: np.float32(2.0),
    "vocab_size": lambda call: np.int64(call.get("vocab_size") or call.student.shape[-1]),
    "alpha": lambda call: np.float64(0.25),
    "normalizer": lambda call: np.int64(7),
}
NORMALIZERS = {"a tensor (1,)": torch.tensor([7]), "float16": torch.tensor(7.0).half()}
SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "default dtype float64": lambda: _Default(torch.set_default_dtype, torch.float32, torch.float64),
    "default dtype bfloat16": lambda: _Default(torch.set_default_dtype, torch.float32, torch.bfloat16),
    "default device meta": lambda: _Default(torch.set_default_device, None, "meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly mode": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "saved-tensor hooks": lambda: _HOOKS(lambda x: x.clone(), lambda x: x),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "saved as numpy": lambda: _HOOKS(lambda x: (x.double().numpy(), x.dtype), lambda x: torch.tensor(x[0], dtype=x[1])),
    "function mode": NoFunction,
    "dispatch mode": NoDispatch,
    "memory uninitialised": lambda: _Default(torch.use_deterministic_algorithms, True, False),
    "multithreading off": lambda: torch.autograd.set_multithreading_enabled(False),
}


@dataclass(frozen=True)
class Exotic:
    name: str
    promised: bool

    def __str__(self) -> str:
        return self.name


def exotic(c: Choices) -> tuple[Call, Exotic] | None:
    """A legal call with one thing unusual; None where that is impossible here, or known and open."""
    call = legal(c)
    if call.get("inplace"):
        return None
    kind = c.pick((_in_a_guise, _in_surroundings, _with_a_number, _without_data))
    try:
        unusual = kind(c, call)
    except Legal:
        return None
    return None if unusual is None or str(unusual) in KNOWN_OPEN else (call, unusual)


def _in_a_guise(c: Choices, call: Call) -> Exotic:
    name = c.pick([*GUISES])
    guise, promised = GUISES[name]
    if name == "wrapper" and call.grad_mode == "inference_mode":  # PyTorch makes none of its subclasses' results there
        raise Legal
    tensors = [key for key, value in call.arguments.items() if isinstance(value, Tensor)]
    argument = c.pick([*tensors, "upstream"])
    if argument == call.first:
        call.leaf = "itself"
    if name == "without storage" and argument not in ("upstream", "labels", "mask"):
        call.arguments[argument] = torch.zeros_like(call.arguments[argument])
    if argument != "upstream":
        sample = call.arguments[argument].detach()
        guise(sample.requires_grad_() if argument == call.first and call.wants_gradient else sample)
        call.arguments[argument] = sample.detach()
    call.dressed = {argument: guise}
    return Exotic(f"{argument}: {name}", promised and argument != "upstream")


def _in_surroundings(c: Choices, call: Call) -> Exotic:
    name = c.pick([*SURROUNDINGS])
    call.around, call.dressed = SURROUNDINGS[name], {}
    return Exotic(name, promised=True)


def _with_a_number(c: Choices, call: Call) -> Exotic:
    reduced = "reduction" in call.arguments
    allowed = [name for name in NUMBERS if name in call.arguments or (name == "normalizer" and reduced)]
    argument = c.pick(allowed or ["temperature"])
    if argument not in allowed or isinstance(call.get(argument), Tensor):
        raise Legal
    what, value = "numpy", NUMBERS[argument](call)
    if argument == "normalizer":
        call.arguments["reduction"] = "mean"
        if c.chance(50):
            what = c.pick([*NORMALIZERS])
            value = NORMALIZERS[what]
    call.arguments[argument] = value
    return Exotic(f"{argument}: {what}", promised=True)


def _without_data(c: Choices, call: Call) -> Exotic:
    """Meta and fake tensors: only the shape and the dtype are asked for."""
    loss = call.get("loss")
    if loss is not None and loss.name == "perturbed":
        raise Legal
    call.module, call.dressed, call.twice, name = False, {}, False, c.pick(("meta", "fake"))
    call.arguments["backend"] = "auto"
    return Exotic(name, promised=True)


def survives(call: Call, unusual: Exotic) -> None:
    """The right answer, or a documented exception that names an argument; an AssertionError otherwise."""
    try:
        _shapes_only(call, str(unusual)) if str(unusual) in ("meta", "fake") else run(call)
    except Legal:  # no such upstream
        return
    except DOCUMENTED as error:
        said = str(error)
        assert not unusual.promised, f"{unusual}: {type(error).__name__}: {said[:300]}"
        named = [*call.arguments, *call.dressed, "gradient", "grad_output"]
        assert any(name in said for name in named), f"{unusual}: the message names no argument: {said[:300]!r}"
        assert not any(word in said.lower() for word in INSIDES), f"{unusual}: {said[:300]!r}"


def _shapes_only(call: Call, where: str) -> None:
    given = {k: v.detach() if isinstance(v, Tensor) else v for k, v in call.arguments.items()}
    mode = FakeTensorMode() if where == "fake" else nullcontext()
    there = mode.from_tensor if where == "fake" else (lambda x: x.to("meta"))
    given = {k: there(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    student = given[call.first].requires_grad_(call.wants_gradient)
    with mode:
        result = call.function(**given)
        gradient = torch.autograd.grad(result.sum(), student)[0] if call.wants_gradient else student
    check_kind(call, result, result.requires_grad == call.wants_gradient)
    assert result.device == gradient.device == student.device
    assert (gradient.shape, gradient.dtype) == (student.shape, student.dtype)
