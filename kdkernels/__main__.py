"""`python -m kdkernels`: versions, devices, backends and what "auto" takes where - what to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings

import torch

from . import __version__, backends
from .backends import SMALL, native, resolve

SETTINGS = ("KDKERNELS_BACKEND", "KDKERNELS_ISA", "KDKERNELS_STRICT", "TRITON_INTERPRET")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def report() -> str:
    lines = [
        f"kdkernels  {__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__} (CUDA {torch.version.cuda or 'no'}, ROCm {torch.version.hip or 'no'})",
        f"triton     {_version('triton')}",
        f"threads    {torch.get_num_threads()}",
        f"compiled   {native.instruction_sets()}, CUDA kernels: {native.cuda_kernels()}",
        *(f"device     {_name(device)}" for device in _devices()),
        *(f"backend    {name}: {state}" for name, state in backends().items()),
        *(f"auto       {device}: {_automatic(device)}" for device in _devices()),
    ]
    lines += [f"set        {name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _devices() -> list[torch.device]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator else 0
    return [torch.device("cpu"), *(torch.device(accelerator.type, index) for index in range(count))]


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {_processor()}"
    name = getattr(torch.get_device_module(device), "get_device_name", lambda _: "without a name")
    return f"{device}, {name(device)}"


def _automatic(device: torch.device) -> str:
    """What backend="auto" takes on this device, by size and dtype where they matter."""
    few, many = (_taken(device, torch.empty(size, device="meta")) for size in (SMALL, SMALL + 1))
    return few if few == many else f"{few} up to {SMALL} logits, {many} beyond"


def _taken(device: torch.device, logits: torch.Tensor) -> str:
    """What it takes for so many logits; a fall-back's warning is in it already."""
    chosen = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in DTYPES:
            try:
                taken = resolve("auto", device, (dtype,), logits)
            except RuntimeError as error:  # KDKERNELS_STRICT=1, or a backend of KDKERNELS_BACKEND that cannot run here
                taken = f"an error ({error})"
            chosen.setdefault(taken, []).append(str(dtype).removeprefix("torch."))
    if len(chosen) == 1:
        return next(iter(chosen))
    return "; ".join(f"{taken} for {', '.join(dtypes)}" for taken, dtypes in chosen.items())


if __name__ == "__main__":
    print(report())
