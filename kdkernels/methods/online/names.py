"""Modules and names of their states without what wraps them: data parallel and compiled ones."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_COMPILED = "_orig_mod"  # what torch.compile puts between a module and its state


def bare(value: nn.Module) -> nn.Module:
    """The module that is wrapped: data parallel and compiled modules put a prefix before every name of its state."""
    while True:
        if isinstance(value, (DistributedDataParallel, DataParallel)):
            value = value.module
        elif isinstance(getattr(value, _COMPILED, None), nn.Module):
            value = getattr(value, _COMPILED)
        else:
            return value


def plain(name: str) -> str:
    """Without the prefix of a part that was compiled by itself."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)
