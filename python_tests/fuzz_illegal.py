"""Strategies for illegal calls: a legal one with one value that its docstring forbids.

What has to come is a documented exception that names the argument, and nothing written: no crash, no number, no error
of PyTorch's insides.
"""

from __future__ import annotations

from fuzz_calls import Call, legal
from fuzz_check import unwritten
from fuzz_choices import Choices
from fuzz_faults import FAULTS, Fault, Legal
from fuzz_known_open import KNOWN_OPEN

DOCUMENTED = (TypeError, ValueError, RuntimeError)
INSIDES = ("internal error", "internal assert", "please report a bug", "returned an invalid gradient")


def illegal(c: Choices) -> tuple[Call, Fault] | None:
    """A call with one fault; None where the fault is none for this call, or is known and open."""
    call = legal(c)
    call.grad_mode, call.dressed = "grad", {}
    call.arguments.pop("inplace", None)
    fault = c.pick(FAULTS[call.op])
    if str(fault) in KNOWN_OPEN:
        return None
    if fault.argument == "normalizer":
        call.arguments["reduction"] = "mean"
    try:
        for name, value in (fault.demands or {}).items():
            if name != "module":
                call.arguments[name] = value(call) if callable(value) else value
        call.arguments[fault.argument] = fault.make(call)
    except Legal:
        return None
    return call, fault


def refused(call: Call, fault: Fault) -> None:
    """The documented exception with the argument's name, nothing written; an AssertionError where it is otherwise."""
    with unwritten(call.arguments):
        try:
            result = call.function(**call.arguments)
        except DOCUMENTED as error:
            said = str(error)
        else:
            raise AssertionError(f"{fault} gives {result!r}"[:300])
    assert fault.argument in said, f"{fault}: the message does not name it: {said[:200]!r}"
    assert not any(word in said.lower() for word in INSIDES), f"{fault}: {said[:200]!r}"
