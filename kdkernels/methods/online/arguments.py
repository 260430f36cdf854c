"""What users pass to this package, and every message: argument, rule, what came."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from ... import checks
from ...losses import Loss

_SHOWN = 5  # names in a message; a teacher may have hundreds


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


def progress(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"progress must be a number in [0, 1], got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], the part of the student's training that is done, got {value}")


def module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def bare(value: nn.Module) -> nn.Module:
    """The module that is wrapped: data parallel and compiled modules put a prefix before every name of its state."""
    while True:
        if isinstance(value, (DistributedDataParallel, DataParallel)):
            value = value.module
        elif isinstance(getattr(value, "_orig_mod", None), nn.Module):
            value = value._orig_mod
        else:
            return value


def recorded(model: object, dtypes: Iterable[torch.dtype]) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a mapping, all of which a file can hold."""
    if isinstance(model, nn.Module):
        model = bare(model).state_dict()
    if not isinstance(model, Mapping):
        raise TypeError(f"model must be a torch.nn.Module or a mapping of names to tensors, got {type(model).__name__}")
    for name, value in model.items():
        if not isinstance(name, str):
            raise TypeError(f"model must map strings to tensors, got the key {name!r}")
        if name == "__metadata__":
            raise ValueError("model must not have an entry '__metadata__', which a safetensors file reserves")
        _dense(name, value)
        if value.dtype not in dtypes:
            raise TypeError(f"model's entry {name!r} must have a dtype of the checkpoints' format, got {value.dtype}")
    return dict(model)


def destinations(model: object) -> dict[str, Tensor]:
    """What loading writes into: the parameters and buffers of the state_dict themselves."""
    if model is None:
        raise ValueError("model must be given, TeacherTrajectory(folder, model), for a checkpoint to be loaded into it")
    inner = bare(model)
    own = {id(each) for each in (*inner.parameters(), *inner.buffers())}
    targets = dict(inner.state_dict(keep_vars=True))
    for name, value in targets.items():
        _dense(name, value)
        if id(value) not in own:
            raise TypeError(f"model must keep its state in parameters and buffers, got an entry {name!r} that is none")
    return targets


def _dense(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"model's entry {name!r} must be a torch.Tensor, got {type(value).__name__}")
    if is_lazy(value) or value.is_meta:
        raise ValueError(f"model's entry {name!r} must have values, got one without (lazy, or on the meta device)")
    # The second: wrappers such as DTensor, of which this process may hold a part only.
    if value.layout is not torch.strided or value.is_quantized or hasattr(value, "__tensor_flatten__"):
        raise TypeError(f"model's entry {name!r} must be a plain dense tensor, got {type(value).__name__}")


def entries(source: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Names and shapes of what is to be loaded, against those of the model."""
    missing, unexpected = (_some(a.keys() - b.keys()) for a, b in ((wanted, found), (found, wanted)))
    if missing or unexpected:
        raise ValueError(
            f"{source} must have the entries of model, got "
            + "; ".join(
                f"{what} {names}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
            )
        )
    wrong = [name for name in wanted if tuple(wanted[name]) != tuple(found[name])]
    if wrong:
        shapes = (f"{name}: {tuple(wanted[name])}, got {tuple(found[name])}" for name in wrong)
        raise ValueError(f"{source} must have the shapes of model: {_first(shapes, len(wrong))}")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return _first(names, len(names))


def _first(words: Iterable[str], count: int) -> str:
    shown = [word for word, _ in zip(words, range(_SHOWN), strict=False)]
    return ", ".join(shown) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")


def dtypes(source: str, wanted: Mapping[str, str], found: Mapping[str, str], floating: set[str]) -> None:
    """Floating point goes into floating point, as load_state_dict has it; all else must be of the model's dtype."""
    for name, code in found.items():
        if code != wanted[name] and not {code, wanted[name]} <= floating:
            raise ValueError(f"{source} must have the model's dtype {wanted[name]} in {name!r}, got {code}")


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


def saved(state: object, wanted: set[str]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping, as state_dict() gives, got {type(state).__name__}")
    if set(state) != wanted:
        raise ValueError(f"state must have the entries {_some(wanted)}, got {_some(map(str, state))}")


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
            f"{_some(strange)} must not be given where loss is a function: it goes with a kdkernels loss only"
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
