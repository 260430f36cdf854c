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
    _check(logits, given)
    local = dict(given)
    if "reduction" in given:
        given = given | {"normalizer": _divisor(given["reduction"], given["normalizer"], logits)}
        _check_zero(logits, given)
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


def _check(logits: Tensor, given: dict[str, Any]) -> None:
    """By whole shapes, so that every process finds the same: one that raised alone would leave the others waiting."""
    if "teacher" in given:
        checks.pair(logits, given["teacher"], given["vocab_size"])
    for name in _PER_ROW:
        if given.get(name) is not None:
            getattr(checks, name)(given[name], logits)


def _divisor(reduction: str, normalizer: float | Tensor | None, logits: Tensor) -> float | Tensor | None:
    whole = normalizer.full_tensor() if checks.distributed(normalizer) else normalizer
    return checks.reduction(reduction, whole, logits)


def _check_zero(logits: Tensor, given: dict[str, Any]) -> None:
    """Every process asks whether a row counts on any of them, or none does: the normalizer is the same on each."""
    if checks.zero(given["normalizer"]):
        counted = _counted(logits, given)
        whole = None if counted is None else counted.any().redistribute(placements=_everywhere(logits)).to_local()
        checks.nothing_counted(given["normalizer"], whole, logits)


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
    total = values.sum().redistribute(placements=_everywhere(logits))
    divisor = given["normalizer"]
    if given["reduction"] == "sum":
        return total
    if given["reduction"] == "batchmean":
        return total / max(logits.shape[0] if logits.dim() > 1 else 1, 1)
    if divisor is None:
        counted = _counted(logits, given)
        if counted is None:
            return total / max(math.prod(logits.shape[:-1]), 1)
        return total / counted.sum().redistribute(placements=_everywhere(logits)).clamp(min=1)
    divisor = torch.as_tensor(divisor, dtype=total.dtype, device=total.device).reshape(())
    of_nothing = (_like(logits, divisor, "normalizer") == 0) & (total.detach() == 0)  # 0 / 0 is the mean of no row: 0
    return total / torch.where(of_nothing, 1.0, _like(logits, divisor, "normalizer"))


def _everywhere(logits: Tensor) -> list:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * logits.device_mesh.ndim


def _counted(logits: Tensor, given: dict[str, Any]) -> Tensor | None:
    """Which rows count, placed as the logits are; None: all."""
    counted = None
    if given.get("labels") is not None:
        counted = _like(logits, given["labels"], "labels") != given["ignore_index"]
    if given["mask"] is not None:
        mask = _like(logits, given["mask"], "mask")
        counted = mask if counted is None else counted & mask
    return counted


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
