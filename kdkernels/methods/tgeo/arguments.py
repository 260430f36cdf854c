"""The checks of what users pass that are this package's own; those of logits and labels are `kdkernels.checks`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ... import checks

IGNORED = -100
"""The label of a row that counts nowhere, as in `torch.nn.functional.cross_entropy`."""


def at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def learning_rate(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"inner_lr must be a number, got {type(value).__name__}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"inner_lr must be positive and finite, got {value}")


def classes(name: str, logits: Tensor, num_classes: int) -> None:
    checks.logits(name, logits)
    if logits.shape[-1] != num_classes:
        raise ValueError(f"{name} must have num_classes={num_classes} logits per row, got {logits.shape[-1]}")


def alpha(value: object, logits: Tensor) -> None:
    """One alpha for a whole batch would broadcast in silence, and so would (B, 1) against (B,): both raise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"alpha must be a torch.Tensor with one value per row, got {type(value).__name__}")
    if value.dim() == 0 and logits.dim() > 1:
        raise ValueError(f"alpha must have one value per row, shape {tuple(logits.shape[:-1])}, got ()")
    checks.alpha(value.detach(), logits)


def learnable(value: Tensor) -> None:
    if not value.requires_grad:
        raise RuntimeError(
            "ratio must return an alpha that depends on its trainable parameters, got a constant (computed under "
            "no_grad, or detached), of which it would never learn"
        )


def batch(name: str, value: object, fields: tuple[str, ...]) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != len(fields):
        came = f"{len(value)} of them" if isinstance(value, (tuple, list)) else type(value).__name__
        raise ValueError(f"{name} must be a tuple ({', '.join(fields)}), got {came}")


def student(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"student must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, DistributedDataParallel):
        raise ValueError(
            "student must be the module itself, got DistributedDataParallel, which would wait for gradients that the "
            "inner step does not send: pass student.module"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("student must have a parameter that requires grad, got none")


def student_logits(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"student must return a torch.Tensor of logits, got {type(value).__name__}: take the logits out of it "
            "with call=, e.g. call=lambda module, inputs: module(**inputs).logits"
        )
    if not value.requires_grad:
        raise RuntimeError("student must return logits that depend on its trainable parameters, got a constant")


def controller(ratio: object, optimizer: object) -> None:
    if not isinstance(ratio, nn.Module):
        raise TypeError(f"ratio must be a torch.nn.Module, got {type(ratio).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held: Iterable[Tensor] = (parameter for group in optimizer.param_groups for parameter in group["params"])
    own = {id(parameter) for parameter in ratio.parameters()}
    strangers = sum(id(parameter) not in own for parameter in held)
    if strangers:
        raise ValueError(f"optimizer must hold parameters of ratio only, got {strangers} that are not ratio's")
