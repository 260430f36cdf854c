"""Logits that are DTensors: every process walks the rows that it has, and the result says how it lies on the mesh.

Rows may be sharded or replicated. A vocabulary that lies across processes needs collectives inside a walk: an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks

_PER_ROW = ("labels", "mask", "weight", "alpha")
_WHOLE = ("class_mean", "normalizer")


def on_shards(function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
    """function(**given), whose first argument is logits, over this process's rows; its reduction over all rows."""
    from torch.distributed.tensor import DTensor

    first = next(iter(given))
    logits = given[first]
    checks.placements(first, logits)
    local = dict(given)
    if "reduction" in given:
        checks.reduction(given["reduction"], given["normalizer"])
        local |= {"reduction": "none", "normalizer": None}
    for name in (first, "teacher", *_PER_ROW):
        if isinstance(given.get(name), Tensor):
            local[name] = _like(logits, given[name], name).to_local()
    for name in _WHOLE:
        if name in local and checks.distributed(local[name]):
            local[name] = local[name].full_tensor()
    rows = function(**local)
    shape = (*logits.shape[:-1], *rows.shape[logits.dim() - 1 :])
    placed = DTensor.from_local(
        rows, logits.device_mesh, logits.placements, run_check=False, shape=torch.Size(shape), stride=_strides(shape)
    )
    return placed if given.get("reduction", "none") == "none" else _reduced(placed, logits, given)


def _like(logits: Tensor, tensor: Tensor, name: str) -> Tensor:
    """A tensor placed as the logits are; a plain one is taken as whole and the same on every process."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = logits.device_mesh, logits.placements
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    elif name == "teacher":
        checks.placements(name, tensor)
    if tensor.dim() == 0:
        return tensor.redistribute(placements=[Replicate()] * mesh.ndim)
    return tensor if tensor.placements == placements else tensor.redistribute(mesh, placements)


def _reduced(values: Tensor, logits: Tensor, given: dict[str, Any]) -> Tensor:
    """The sum over the rows of all processes, divided as `reduction` says, the same number on each."""
    from torch.distributed.tensor import Replicate

    everywhere = [Replicate()] * logits.device_mesh.ndim
    total = values.sum().redistribute(placements=everywhere)
    divisor = given["normalizer"]
    if given["reduction"] == "sum":
        return total
    if given["reduction"] == "batchmean":
        return total / max(logits.shape[0] if logits.dim() > 1 else 1, 1)
    if divisor is None:
        return total / _counted(logits, given, everywhere)
    if checks.distributed(divisor):
        divisor = divisor.full_tensor()
    divisor = torch.as_tensor(divisor, dtype=total.dtype, device=total.device).reshape(())
    of_nothing = (_like(logits, divisor, "normalizer") == 0) & (total.detach() == 0)  # 0 / 0 is the mean of no row: 0
    return total / torch.where(of_nothing, 1.0, _like(logits, divisor, "normalizer"))


def _counted(logits: Tensor, given: dict[str, Any], everywhere: list) -> Tensor | int:
    """How many rows count, at least 1."""
    counted = None
    if given.get("labels") is not None:
        counted = _like(logits, given["labels"], "labels") != given["ignore_index"]
    if given["mask"] is not None:
        mask = _like(logits, given["mask"], "mask")
        counted = mask if counted is None else counted & mask
    if counted is None:
        return max(math.prod(logits.shape[:-1]), 1)
    return counted.sum().redistribute(placements=everywhere).clamp(min=1)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
