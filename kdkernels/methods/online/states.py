"""What a state must be to be recorded, saved or loaded, and every message about it: argument, rule, what came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import names

_SHOWN = 5  # names in a message; a teacher may have hundreds


def recorded(model: object, dtypes: Iterable[torch.dtype]) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a mapping, all of which a file can hold."""
    if isinstance(model, nn.Module):
        model = names.bare(model).state_dict()
    if not isinstance(model, Mapping):
        raise TypeError(f"model must be a torch.nn.Module or a mapping of names to tensors, got {type(model).__name__}")
    tensors = plain("model", model)
    for name, value in tensors.items():
        if name == "__metadata__":
            raise ValueError("model must not have an entry '__metadata__', which a safetensors file reserves")
        _dense(name, value)
        if value.dtype not in dtypes:
            raise TypeError(f"model's entry {name!r} must have a dtype of the checkpoints' format, got {value.dtype}")
    return tensors


def plain(source: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries under their names without the parts that torch.compile adds."""
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"{source} must have strings as names of its entries, got the key {name!r}")
    entries = {names.plain(name): value for name, value in state.items()}
    if len(entries) < len(state):
        twice = sorted(state.keys() - entries.keys())
        raise ValueError(f"{source} must not have an entry twice, once as compiled, got {_first(twice, len(twice))}")
    return entries


def destinations(model: object) -> dict[str, Tensor]:
    """What loading writes into: the parameters and buffers of the state_dict themselves."""
    if model is None:
        raise ValueError("model must be given, TeacherTrajectory(folder, model), for a checkpoint to be loaded into it")
    inner = names.bare(model)
    own = {id(each) for each in (*inner.parameters(), *inner.buffers())}
    targets = plain("model", inner.state_dict(keep_vars=True))
    for name, value in targets.items():
        _dense(name, value)
        _writable("model", name, value)
        if id(value) not in own:
            raise TypeError(f"model must keep its state in parameters and buffers, got an entry {name!r} that is none")
    return targets


def _dense(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"model's entry {name!r} must be a torch.Tensor, got {type(value).__name__}")
    _valued("model", name, value)
    # The second: wrappers such as DTensor, of which this process may hold a part only.
    if value.layout is not torch.strided or value.is_quantized or hasattr(value, "__tensor_flatten__"):
        raise TypeError(f"model's entry {name!r} must be a plain dense tensor, got {type(value).__name__}")


def _valued(source: str, name: str, value: Tensor) -> None:
    if is_lazy(value) or value.is_meta:
        raise ValueError(f"{source}'s entry {name!r} must have values, got one without (lazy, or on the meta device)")


def _writable(source: str, name: str, value: Tensor) -> None:
    strides = value.stride() if value.layout is torch.strided else ()
    if any(size > 1 and stride == 0 for size, stride in zip(value.shape, strides, strict=False)):
        raise ValueError(f"{source}'s entry {name!r} must have memory for each of its elements, got an expanded tensor")
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{source}'s entry {name!r} must be a tensor that can be written, got an inference tensor")


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


def saved(state: object, scheduler: bool) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping, as state_dict() gives, got {type(state).__name__}")
    if set(state) != {"teacher", "optimizer", "scheduler"}:
        raise ValueError(f"state must have the entries optimizer, scheduler, teacher, got {_some(map(str, state))}")
    if (state["scheduler"] is None) is scheduler:
        without = "without" if scheduler else "with"
        raise ValueError(f"state must have a scheduler if and only if this object has, got one {without}")
    for part, value in state.items():
        if not isinstance(value, Mapping) and (part != "scheduler" or scheduler):
            raise TypeError(f"state[{part!r}] must be a mapping, as its state_dict() gives, got {type(value).__name__}")


def saved_teacher(own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """All that nn.Module.load_state_dict would meet when it has written a part."""
    source = "state['teacher']"
    entries(source, *({name: getattr(value, "shape", ()) for name, value in each.items()} for each in (own, found)))
    for name, target in own.items():
        if isinstance(target, Tensor):
            _valued("teacher", name, target)
            _writable("teacher", name, target)
            if getattr(found[name], "layout", None) is not target.layout:
                came = type(found[name]).__name__
                raise TypeError(f"{source}'s entry {name!r} must be a tensor in the teacher's layout, got {came}")
            _valued(source, name, found[name])


_COME_AND_GO = ("step", "_lr", "_momentum")  # what schedulers and some optimizers add to a group while they train


def saved_optimizer(groups: Iterable[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    """Each group must have the settings of this optimizer: PyTorch takes any other's."""
    came = found.get("param_groups")
    if not isinstance(came, list) or not all(isinstance(group, Mapping) for group in came):
        raise ValueError(
            f"state['optimizer'] must have a list of param_groups, got the entries {_some(map(str, found))}"
        )
    for own, group in zip(groups, came, strict=False):
        strange = {name for name in map(str, own.keys() ^ group.keys()) if not name.endswith(_COME_AND_GO)}
        if strange:
            raise ValueError(
                f"state['optimizer'] must be of the kind of optimizer, got one that differs in {_some(strange)}"
            )


def saved_scheduler(own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """PyTorch takes any mapping. Names with an underscore may come with another version of it."""
    missing = {name for name in map(str, own.keys() - found.keys()) if not name.startswith("_")}
    if missing:
        raise ValueError(f"state['scheduler'] must be of the kind of scheduler, got one without {_some(missing)}")


@contextmanager
def loaded(part: str) -> Iterator[None]:
    """Whatever it is that an optimizer or a scheduler raises at a state that is not its own."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"state[{part!r}] must be a state that the {part} can load, got {what}") from error
