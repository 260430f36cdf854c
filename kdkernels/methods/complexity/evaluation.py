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
        # Copies: a model may write to its parameters in eval mode (an embedding with max_norm), and to a part of them
        # even while they are differentiated.
        copies = {name: (each.detach().clone(), each.requires_grad) for name, each in model.named_parameters()}
        self.weights: Weights = {name: each for name, (each, wanted) in copies.items() if wanted}
        self.constants = {name: each for name, (each, wanted) in copies.items() if not wanted}
        batched = self._probe(inputs, min(max(chunk, 2), len(inputs[0])))
        self.dtype = batched.dtype
        width = batched[0].numel()
        if isinstance(outputs, int):
            arguments.output_index(outputs, width)
        self.width = width if outputs == "all" else 1
        """Of the outputs asked for."""

    def _probe(self, inputs: tuple[Tensor, ...], several: int) -> Tensor:
        """The outputs of the first examples, once they have shown that each stands for itself."""
        # Nothing that the model is given requires grad, so that outputs which do have come by a weight of its own.
        with torch.enable_grad():
            batched = self.call(self.weights, tuple(each[:several] for each in inputs))
        arguments.model_outputs(batched, several)
        # Both ends: what is passed on from example to example does not reach the one at which it begins.
        for row in {0, several - 1}:
            alone = self.call(self.weights, tuple(each[row : row + 1] for each in inputs))
            arguments.by_itself(alone, batched, row)
        return batched

    def call(self, weights: Weights, inputs: tuple[Tensor, ...]) -> Tensor:
        # Copies, so that a model that writes to its buffers or to its inputs does not change them.
        buffers = {name: each.detach().clone() for name, each in self.model.named_buffers()}
        copies = tuple(each.clone() for each in inputs)
        return functional_call(self.model, {**self.constants, **weights, **buffers}, copies)

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
