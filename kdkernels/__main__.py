"""`python -m kdkernels`: versions, devices, instruction sets and backends - what to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from . import __version__, backends
from .backends import native


def report() -> str:
    lines = [
        f"kdkernels  {__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__} (CUDA {torch.version.cuda or 'no'}, ROCm {torch.version.hip or 'no'})",
        f"triton     {_version('triton')}",
        f"processor  {_processor()}, {torch.get_num_threads()} threads",
        f"compiled   {native.instruction_sets()}",
        *(f"device     {name}" for name in _devices()),
        *(f"backend    {name}: {state}" for name, state in backends().items()),
    ]
    chosen = {name: os.environ[name] for name in ("KDKERNELS_BACKEND", "KDKERNELS_ISA") if name in os.environ}
    lines += [f"set        {name}={value}" for name, value in chosen.items()]
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


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["no GPU"]


if __name__ == "__main__":
    print(report())
