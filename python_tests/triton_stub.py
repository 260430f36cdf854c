"""A driver for Triton that launches nothing: kernels compile for a GPU that is not here, launches are recorded.

Everything of a launch but the GPU runs: Triton's own path, the backend's own, and what they agree on. Each launch is
held to what its kernel was compiled for: a pointer that was promised to be aligned, a number that was promised to be 1
or a multiple of 16, a number that has to fit 32 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from _triton_offline import TARGETS
from triton.runtime.driver import driver


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    arguments: list[Any]
    """Without constants, tuples flattened, pointers as addresses."""
    compiled: int
    """Which compiled kernel it was; equal for launches of the same one."""


class _Utilities:
    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": 1 << 20, "multiprocessor_count": 132}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class StubDriver:
    """As much of a driver as Triton asks for, with a list in the GPU's place."""

    def __init__(self, target: str) -> None:
        self.target = TARGETS[target]
        self.utils = _Utilities()
        self.launches: list[Launch] = []
        self.asked = 0
        self.launcher_cls = lambda source, metadata: _Launcher(self, source, metadata)

    def get_current_target(self) -> Any:
        self.asked += 1
        return self.target

    def get_current_device(self) -> int:
        return id(self)  # kernels are cached per device: one cache for each driver

    def get_current_stream(self, device: Any) -> int:
        return 7


class _Launcher:
    def __init__(self, stub: StubDriver, source: Any, metadata: Any) -> None:
        self.stub, self.name = stub, metadata.name
        self.signature = list(source.signature.values())
        self.constants, self.attributes = source.constants, source.attrs

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        packed, metadata, enter, leave, *arguments = rest
        assert stream == 7 and function == 1 and packed is not None
        for hook in (enter, leave):
            if hook is not None:
                hook(metadata)
        assert len(arguments) == len(self.signature)
        flat: list[Any] = []
        for place, (kind, value) in enumerate(zip(self.signature, arguments, strict=True)):
            self._take(kind, value, (place,), flat)
        self.stub.launches.append(Launch(self.name, (x, y, z), flat, id(self)))

    def _take(self, kind: Any, value: Any, path: tuple[int, ...], flat: list[Any]) -> None:
        if isinstance(kind, tuple):
            assert len(kind) == len(value)
            for place, (inner, part) in enumerate(zip(kind, value, strict=True)):
                self._take(inner, part, (*path, place), flat)
        elif kind == "constexpr":
            if len(path) > 1 or value is not None:
                held = self.constants[path]
                assert getattr(held, "value", held) == getattr(value, "value", value), (self.name, path, held, value)
        else:
            flat.append(self._number(kind, value, path))

    def _number(self, kind: str, value: Any, path: tuple[int, ...]) -> Any:
        promised = dict(self.attributes.get(path, []))
        if kind.startswith("*"):
            number = value if isinstance(value, int) else value.data_ptr()
        elif kind == "fp32":
            return float(value)
        else:
            number, bits = int(value), int(kind[1:])
            assert -(1 << (bits - 1)) <= number < 1 << (bits - (kind[0] == "i")), (self.name, kind, value)
        assert number % promised.get("tt.divisibility", 1) == 0, (self.name, path, value)
        return number


@contextlib.contextmanager
def stubbed(target: str = "sm_90") -> Iterator[StubDriver]:
    """Inside, launches of the Triton backend on meta tensors go to the driver's list."""
    stub = StubDriver(target)
    driver.set_active(stub)  # type: ignore[arg-type]
    try:
        with mock.patch.object(torch.cuda, "get_device_properties", side_effect=AssertionError("a device query")):
            yield stub
    finally:
        driver.set_active(None)  # type: ignore[arg-type]
