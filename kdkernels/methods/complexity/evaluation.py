"""A model as a function of its weights, in eval mode, that leaves no trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import arguments

Weights = dict[str, Tensor]


class Evaluated:
    """The outputs, asked for by `outputs`, of a model in eval mode.

    To be used within `undisturbed`, and made there: it looks once at what the model gives.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], outputs: str | int, chunk: int) -> None:
        self.model, self.outputs = model, outputs
        self.weights: Weights = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
        self.constants = {name: each.detach() for name, each in model.named_parameters() if not each.requires_grad}
        several = min(chunk, len(inputs[0]))
        batched = self.call(self.weights, tuple(each[:several] for each in inputs))
        arguments.model_outputs(batched, several)
        alone = self.call(self.weights, tuple(each[:1] for each in inputs))
        arguments.model_outputs(alone, 1)
        arguments.by_itself(alone[0], batched[0])
        self.dtype = alone.dtype
        width = alone[0].numel()
        if isinstance(outputs, int):
            arguments.output_index(outputs, width)
        self.width = width if outputs == "all" else 1
        """Of the outputs asked for."""

    def call(self, weights: Weights, inputs: tuple[Tensor, ...]) -> Tensor:
        # Buffers are copies, so that a model that writes to its own in eval mode does not change.
        buffers = {name: each.clone() for name, each in self.model.named_buffers()}
        return functional_call(self.model, {**self.constants, **weights, **buffers}, inputs)

    def one(self, weights: Weights, example: tuple[Tensor, ...]) -> Tensor:
        """(width,) of one example, without its batch dimension."""
        row = self.call(weights, tuple(each.unsqueeze(0) for each in example)).reshape(-1)
        if self.outputs == "all":
            return row
        return row.sum(0, keepdim=True) if self.outputs == "sum" else row[self.outputs].unsqueeze(0)


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, without the caller's autograd and autocast, compiled code, and fused operations that torch.func cannot
    map; modes and random numbers are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {each.device for each in model.parameters() if each.device.type != "cpu"}
    states = [(each, torch.get_device_module(each).get_rng_state(each)) for each in devices]
    cpu, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and its import takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training  # not train(): a module may have overridden it to keep a part frozen
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.set_rng_state(cpu)
            for each, state in states:
                torch.get_device_module(each).set_rng_state(state, each)
