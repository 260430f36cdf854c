"""The student as a function of its weights: run with others, differentiated along some, and left as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

Call = Callable[[nn.Module, Any], Tensor]
"""(module, inputs) -> logits (..., vocab)."""
Weights = dict[str, Tensor]

_NO_FORWARD_MODE = (
    "student cannot be differentiated in forward mode, which the hypergradient needs: {reason}\nWrite the operation "
    "that has no forward-mode formula in plain ones, or keep to a backend that has one while call= runs: for recurrent "
    "layers torch.backends.cudnn.flags(enabled=False), on a CPU torch.backends.mkldnn.flags(enabled=False). A custom "
    "autograd.Function needs a jvp. Where dtypes disagree, switch autocast off in call= (BatchNorm in evaluation mode)."
)


class BoundStudent(nn.Module):
    """Runs functions of the student with other weights and with copies of its buffers.

    A module around it, because `functional_call` puts the weights in for the time of one forward: a function that runs
    there and takes gradients before it returns sees them in backward too, where checkpointed activations are computed
    again.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        trained = ((name, each) for name, each in self.named_parameters() if each.requires_grad)
        self.weights: Weights = {name: each.detach().requires_grad_() for name, each in trained}

    def run(self, function: Callable, weights: Weights, *rest: Any) -> Any:
        buffers = {name: each.clone() for name, each in self.named_buffers()}
        return functional_call(self, {**weights, **buffers}, (function, weights, *rest))

    def forward(self, function: Callable, *rest: Any) -> Any:
        return function(self.student, *rest)


def tangents(bound: BoundStudent, call: Call, inputs: Any, direction: Weights) -> Tensor:
    """(dz/dtheta) direction, (..., vocab).

    By dual tensors and not by torch.func.jvp: that one refuses modules that write to their buffers, as BatchNorm does.
    """
    try:
        with torch.no_grad(), forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(each.detach(), direction[name]) for name, each in bound.weights.items()}
            logits = bound.run(lambda module, weights: call(module, inputs), dual)
            primal, tangent = forward_ad.unpack_dual(logits)
            return torch.zeros_like(primal) if tangent is None else tangent
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(_NO_FORWARD_MODE.format(reason=error)) from error


def call_with(module: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, tuple):
        return module(*inputs)
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def eagerly() -> contextlib.AbstractContextManager:
    """Compiled modules run as they were written: what they compile to has no forward mode and draws other masks."""
    compiler = "torch._dynamo" in sys.modules  # without it nothing is compiled, and its import takes a second
    return torch.compiler.set_stance("force_eager") if compiler else contextlib.nullcontext()


@contextlib.contextmanager
def replayed(student: nn.Module) -> Iterator[Callable[[], None]]:
    """Yields what puts the random state back to where it was on entry; on leaving it is put back too."""
    devices = {each.device for each in student.parameters() if each.device.type != "cpu"}
    states = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}
    cpu = torch.get_rng_state()

    def rewind() -> None:
        torch.set_rng_state(cpu)
        for device, state in states.items():
            torch.get_device_module(device).set_rng_state(state, device)

    try:
        yield rewind
    finally:
        rewind()
