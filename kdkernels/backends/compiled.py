"""Launches through the kernel that Triton compiled before for arguments of the same kinds.

`kernel[grid](...)` binds and specialises every argument, prints them into a key and compares the kernel's globals at
every call, which takes several times as long as the launch. Here the first launch of a kind is Triton's own; the
compiled kernel that it returns takes the later ones, with tensors as addresses.

A kind is all that Triton compiles for: of a tensor the dtype and whether it is aligned to 16 bytes (for AMD also
whether offsets of 32 bits reach all of its storage), of an integer its width and whether it is 1 or a multiple of 16,
of anything else what it is; and the constants, the device and the threads. Triton 3.6 to 3.8 specialise on no more,
and inside tuples on no less, whatever a kernel is decorated with. Where `do_not_specialize` makes two kinds one, both
lead to the same compiled kernel.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

KNOWN_TRITON = ((3, 6), (3, 7), (3, 8))
"""The versions whose compiled kernels take a launch as `launch` hands it over; others launch through `kernel[grid]`."""


class Arguments(NamedTuple):
    """A kernel's arguments before its constants."""

    given: tuple[Any, ...]
    values: list[Any]
    """As a compiled kernel takes them: addresses for tensors."""
    kinds: list[Any]
    """What Triton compiles for."""

    def and_then(self, later: Arguments) -> Arguments:
        return Arguments(self.given + later.given, self.values + later.values, self.kinds + later.kinds)


class Compiled(NamedTuple):
    """What a launch of a compiled kernel takes beside its grid, stream and arguments."""

    run: Callable[..., None]
    function: int
    metadata: Any
    constants: tuple[None, ...]
    """In the places of the constants, which the launcher passes over."""
    holds: tuple[Any, ...]
    """What the key knows by `id`."""


_compiled: dict[tuple[Any, ...], Compiled] = {}


@functools.cache
def version() -> tuple[int, ...]:
    import triton

    return tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])


@functools.cache
def _triton() -> tuple[Any, Any]:
    """Triton's driver and runtime knobs; an import statement at every launch would show."""
    from triton.runtime.driver import driver

    from triton import knobs

    return driver, knobs.runtime


@functools.lru_cache(maxsize=64)
def _target_of(driver: Any, device: int) -> tuple[str, int]:
    target = driver.get_current_target()
    return target.backend, target.warp_size


def target(where: Tensor) -> tuple[str, int]:
    """("cuda" | "hip", threads of a warp). The device is the current one at the first launch on it."""
    return _target_of(_triton()[0].active, where.get_device())


def bind(arguments: tuple[Any, ...], where: Tensor) -> Arguments:
    kinds: list[Any] = []
    return Arguments(arguments, _bound(arguments, kinds, target(where)[0] == "hip"), kinds)


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Arguments, where: Tensor, threads: int, constants: dict[str, Any]
) -> None:
    """kernel[grid](*arguments, **constants) on the device of `where`, which is the current one."""
    manager, knobs = _triton()
    driver, device = manager.active, where.get_device()
    key = (driver, device, id(kernel), threads, *_keys(constants), *arguments.kinds)
    compiled = _compiled.get(key)
    if compiled is None or _watched(knobs):
        warps = threads // _target_of(driver, device)[1]
        found = kernel[grid](*arguments.given, **constants, num_warps=warps)
        _keep(key, kernel, found, len(arguments.given), constants)
        return
    run, function, metadata, skipped, _ = compiled
    y = grid[1] if len(grid) == 2 else 1
    stream = driver.get_current_stream(device)
    run(grid[0], y, 1, stream, function, metadata, None, None, None, *arguments.values, *skipped)


def _keys(constants: dict[str, Any]) -> list[Any]:
    """A function among the constants by its id: Triton hashes one by its source, under a lock."""
    return [id(value) if callable(value) else value for value in constants.values()]


def _watched(knobs: Any) -> bool:
    """Whether a profiler waits for launches: Triton's own path tells it what it wants to know."""
    enter, leave = knobs.launch_enter_hook, knobs.launch_exit_hook
    return bool(getattr(enter, "calls", enter)) or bool(getattr(leave, "calls", leave))


def _keep(key: tuple[Any, ...], kernel: Any, found: Any, arguments: int, constants: dict[str, Any]) -> None:
    """Keeps a compiled kernel; none is there where a hook of Triton's declined to compile."""
    rest = kernel.params[arguments:]
    if found is None or version() not in KNOWN_TRITON or not all(parameter.is_constexpr for parameter in rest):
        return
    skipped = (None,) * len(rest)
    holds = (kernel, *constants.values())
    _compiled[key] = Compiled(found.run, found.function, found.packed_metadata, skipped, holds)


def _bound(arguments: tuple[Any, ...], kinds: list[Any], hip: bool) -> list[Any]:
    """The arguments as a compiled kernel takes them; what each is compiled for is appended to `kinds`."""
    values = list(arguments)
    for place, value in enumerate(arguments):
        kind = type(value)
        if kind is int:
            if -(2**31) <= value < 2**31:
                kinds.append(16 if value & 15 == 0 else value == 1)
            else:
                kinds.append((value & 15 == 0, value < 2**63))
        elif kind is float or value is None:
            kinds.append(kind)
        elif isinstance(value, Tensor):
            values[place] = address = value.data_ptr()
            if not address and value.numel() and not value.is_meta:
                raise ValueError("a tensor that a kernel has to read or write has no memory")
            kinds += (value.dtype, address & 15 == 0)
            if hip:
                kinds.append(value.untyped_storage().nbytes() < 2**31)
        elif isinstance(value, tuple):
            kinds.append(kind)
            values[place] = tuple(_bound(value, kinds, hip))
        else:
            kinds.append((kind, getattr(value, "value", value)))  # a constant, or a bool
    return values
