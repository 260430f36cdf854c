"""What users pass to this package, and every message but those of `states`: argument, rule, what came."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import checks
from ...losses import Loss


def folder(value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {type(value).__name__}")
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder must be a folder or not exist yet, got the file {path}")
    return path


def step(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"step must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"step must not be negative, got {value}")


def progress(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ": pass .item() of a 0-d one, which waits for its device" if isinstance(value, Tensor) else ""
        raise TypeError(f"progress must be a number in [0, 1], got {type(value).__name__}{hint}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], the part of the student's training that is done, got {value}")
    return float(value)


def module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def replaceable(step: int, path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"step must be a new one or come with the content of {path}, got {step} with other content: pass "
            "overwrite=True to replace it"
        )


def there(value: int, steps: tuple[int, ...], folder: Path) -> None:
    if value not in steps:
        shown = steps if len(steps) <= 20 else (*steps[:10], "...", *steps[-9:])
        raise FileNotFoundError(f"step must be a recorded one, {', '.join(map(str, shown))} in {folder}, got {value}")


def not_empty(steps: tuple[int, ...], folder: Path) -> None:
    if not steps:
        raise FileNotFoundError(f"folder must hold a checkpoint (record one first), got none in {folder}")


def trainer(teacher: object, optimizer: object, criterion: object, scheduler: object) -> None:
    module("teacher", teacher)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    own = {id(parameter) for parameter in teacher.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("optimizer must hold parameters of teacher, got none of them")
    if criterion is not None and not callable(criterion):
        raise TypeError(f"criterion must be callable, (logits, labels) -> loss, got {type(criterion).__name__}")
    if scheduler is None:
        return
    if not callable(getattr(scheduler, "step", None)):
        raise TypeError(f"scheduler must have a method step(), got {type(scheduler).__name__}")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError("scheduler must step without a metric, got ReduceLROnPlateau: step it outside")


def teacher_loss(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"criterion must return a torch.Tensor, got {type(value).__name__}")
    if value.dim() != 0:
        raise ValueError(f"criterion must return a 0-d tensor, got shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise RuntimeError(
            "criterion must return a loss that depends on teacher's trainable parameters, got a constant"
        )


def teacher(value: object) -> None:
    if not callable(getattr(value, "at", None)):
        raise TypeError(
            "teacher must have a method at(progress), as TeacherTrajectory and SideBySide do, got "
            f"{type(value).__name__}"
        )


def teacher_logits(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"teacher must return a torch.Tensor of logits, got {type(value).__name__}: wrap it in a module that takes "
            "the logits out"
        )


def loss(value: object) -> None:
    """A loss of the package, or a function of the logits: an instance and not a class."""
    if isinstance(value, (Loss, type)) or not callable(value):
        checks.loss(value)


def keywords(given: Mapping[str, Any]) -> None:
    """A function of the logits is averaged over the rows; no other keyword of kdkernels.distillation reaches it."""
    strange = given.keys() - {"reduction"}
    if strange:
        raise TypeError(
            f"{', '.join(sorted(strange))} must not be given where loss is a function: it goes with a kdkernels loss"
        )
    if given.get("reduction", "mean") != "mean":
        raise TypeError(f"reduction must be 'mean' where loss is a function, got {given['reduction']!r}")


def rows(value: object, student: Tensor) -> None:
    """A mean, or (B, 1) against (B,), would broadcast in silence."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a torch.Tensor with one value per row, got {type(value).__name__}")
    if value.shape != student.shape[:-1]:
        raise ValueError(
            f"loss must return one value per row, shape {tuple(student.shape[:-1])}, got {tuple(value.shape)}"
        )
