"""What the nn.Module twins share: a loss whose tensors are the module's state, and options that are checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .backends import check_name
from .losses import Loss

_ANY_VOCABULARY = 2**31 - 1


class Option:
    """A keyword of a criterion's function, as an attribute of the criterion: checked when it is assigned."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Criterion | None, owner: type | None = None) -> Any:
        return self if module is None else module.options[self.name]

    def __set__(self, module: Criterion, value: Any) -> None:
        options = module.options | {self.name: value}
        _check(module.loss, options)
        module.options = options


class Criterion(nn.Module):
    """Holds a loss and the keywords of its function; what varies by batch is given at the call.

    A keyword may be read and assigned later, as ``criterion.temperature = 4.0``, and is checked again then.

    Tensors of the loss (``Perturbed``'s ``coefficients``) are buffers: they move with the module, are in its
    state_dict, and what is loaded or written into them is what the loss uses. They keep their dtype: ``half()`` or
    ``to(torch.bfloat16)`` would only round them, because arithmetic is float32 at least.
    """

    temperature, tau_squared, reduction = Option(), Option(), Option()
    vocab_size, inplace, backend = Option(), Option(), Option()

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
        return self._loss.with_tensors({name: getattr(self, name) for name in self._names})  # .data counts no writing

    @loss.setter
    def loss(self, loss: Loss) -> None:
        checks.loss(loss)
        for name in self._names:
            delattr(self, name)
        held = loss.tensors()
        with torch.inference_mode(False):
            for name, tensor in held.items():
                self.register_buffer(name, tensor.clone())  # the caller's loss stays as it is, whatever is loaded here
        self._loss, self._names = loss, tuple(held)

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


def _check(loss: Loss, options: Mapping[str, Any]) -> None:
    """All that is known before there is a batch, by a call's own checks and in their words."""
    checks.loss(loss)
    checks.temperature(options["temperature"])
    checks.reduction(options["reduction"], None)
    check_name(options["backend"], "backend")
    for name in ("tau_squared", "inplace"):
        checks.flag(name, options[name])
    if options["tau_squared"]:
        checks.squared(options["temperature"])
    if "ignore_index" in options:
        checks.ignore_index(options["ignore_index"])
    vocab_size = options["vocab_size"]
    if vocab_size is not None:
        device = next((tensor.device for tensor in loss.tensors().values()), "cpu")
        logits = torch.empty(0, _ANY_VOCABULARY, device=device)  # no memory: it has no rows
        checks.loss_fits(loss, logits, logits, checks.pair(logits, logits, vocab_size))
