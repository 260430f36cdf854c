"""What the nn.Module twins share: a loss whose tensors are the module's state, and options that are checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .backends import check_name, traced, transformed
from .losses import Loss

_ANY_VOCABULARY = 2**31 - 1


class Criterion(nn.Module):
    """Holds a loss and the keywords of its function; what varies by batch is given at the call.

    Tensors of the loss (``Perturbed``'s ``coefficients``) are buffers: they move with the module, are in its
    state_dict, and what is loaded or written into them is what the loss uses. They keep their dtype: ``half()`` or
    ``to(torch.bfloat16)`` would only round them, because arithmetic is float32 at least.
    """

    _names = ()  # of the buffers that are the loss's tensors

    def __init__(self, loss: Loss, **options: Any) -> None:
        """The arguments are described above."""
        super().__init__()
        _check(loss, options)
        self.loss = loss
        self.options = options

    @property
    def loss(self) -> Loss:
        """The loss, its tensors what the buffers hold now. Another loss may be assigned."""
        if not self._names:
            return self._loss
        held = {name: getattr(self, name) for name in self._names}  # a Parameter, where one was assigned
        if traced(*held.values()) or transformed():
            return self._loss.with_tensors(held)  # a graph holds the buffers, not what was once made from them
        stamp = [_stamp(tensor) for tensor in held.values()]
        if stamp != self._made_of:
            self._loss, self._made_of = self._loss.with_tensors(held), stamp
        return self._loss

    @loss.setter
    def loss(self, loss: Loss) -> None:
        checks.loss(loss)
        for name in self._names:
            delattr(self, name)
        held = loss.tensors()
        with torch.inference_mode(False):
            for name, tensor in held.items():
                self.register_buffer(name, tensor.clone())  # the caller's loss stays as it is, whatever is loaded here
        self._loss, self._names, self._made_of = loss, tuple(held), None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Criterion:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = self._buffers[name]
            if tensor is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """Tensors that the loss could not have been made with are refused, and the module stays as it is."""
        found = {name: state_dict.get(prefix + name) for name in self._names}
        if all(isinstance(found[name], Tensor) and found[name].shape == getattr(self, name).shape for name in found):
            try:
                self._loss.with_tensors({name: tensor.detach() for name, tensor in found.items()}).look()
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix}{type(self).__name__}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """What `repr` shows: the loss and the options."""
        return ", ".join([repr(self._loss), *(f"{name}={value!r}" for name, value in self.options.items())])


def _stamp(tensor: Tensor) -> tuple:
    """Which tensor it is, of what kind, where its values lie and how often they were written."""
    version = object() if tensor.is_inference() else tensor._version  # no writing is counted there: never the same
    return id(tensor), tensor.requires_grad, tensor.data_ptr(), version


def _check(loss: Loss, options: Mapping[str, Any]) -> None:
    """All that is known before there is a batch, by a call's own checks and in their words."""
    checks.loss(loss)
    checks.temperature(options["temperature"])
    checks.reduction(options["reduction"], None)
    check_name(options["backend"], "backend")
    for name in ("tau_squared", "inplace"):
        checks.flag(name, options[name])
    if "ignore_index" in options:
        checks.ignore_index(options["ignore_index"])
    vocab_size = options["vocab_size"]
    if vocab_size is not None:
        device = next((tensor.device for tensor in loss.tensors().values()), "cpu")
        logits = torch.empty(0, _ANY_VOCABULARY, device=device)  # no memory: it has no rows
        checks.loss_fits(loss, logits, logits, checks.pair(logits, logits, vocab_size))
