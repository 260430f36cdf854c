"""Compile exactly what the Triton backend would launch, for a GPU that is not here, and read what the compiler used.

    python python_tests/_triton_offline.py sm_90 jensen_shannon 32000 bfloat16
    python python_tests/_triton_offline.py sm_90 trilateral 32000 bfloat16

prints, for each launch, the registers per thread, the bytes of stack (a spill takes stack), the scalar and vector
registers that AMD's compiler spilled and the bytes of shared memory per program.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from kdkernels.backends import STATISTICS
from kdkernels.backends import triton as backend
from kdkernels.backends.calls import Divergence, Trilateral
from kdkernels.losses import LOSSES, Loss, Perturbed

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes that one program may have: sm_80 and sm_90 with opt-in, gfx942's local data share.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}


@dataclass(frozen=True)
class Usage:
    kernel: str
    threads: int
    registers: int
    stack: int
    spilled: int
    shared: int


class _OfflineDriver:
    """As much of a driver as a compilation asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # kernels are cached per device: one cache for each target

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[Any]]:
    """Inside, a launch compiles for the target and appends the kernel to the list instead of running it."""
    compiled: list[Any] = []
    run = triton.JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **keywords))

    driver.set_active(_OfflineDriver(TARGETS[name]))  # type: ignore[arg-type]
    try:
        with mock.patch.object(triton.JITFunction, "run", compile_only):
            yield compiled
    finally:
        driver.set_active(None)  # type: ignore[arg-type]


def usage(kernel: Any) -> Usage:
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    if "cubin" in kernel.asm:
        registers, stack, spilled = _cubin_usage(kernel.asm["cubin"])
    else:
        found = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)", kernel.asm["amdgcn"])}
        registers, stack = found["vgpr_count"], found["private_segment_fixed_size"]
        spilled = found["vgpr_spill_count"] + found["sgpr_spill_count"]
    return Usage(kernel.metadata.name, threads, registers, stack, spilled, kernel.metadata.shared)


def _cubin_usage(cubin: bytes) -> tuple[int, int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", report.split("Function", 1)[1])}
    return found["REG"], found["STACK"], found["LOCAL"]


def example(name: str) -> Loss:
    """The loss by name, with parameters where it does not stand without."""
    return Perturbed(torch.full((5,), 0.5)) if name == Perturbed.name else LOSSES[name]()


def launch_divergence(
    loss: Loss, vocab: int, student: torch.dtype, teacher: torch.dtype, *, gradient: bool, labels: bool
) -> None:
    """What `divergence` launches for 64 rows of this length; meta tensors have addresses that are aligned."""
    logits = _meta(64, vocab, dtype=student)
    table = loss.table(torch.float32)
    call = Divergence(
        labels=_meta(64, dtype=torch.int64) if labels else None,
        soft_weight=_meta(64),
        hard_weight=_meta(64) if labels else None,
        table=None if table is None else table.to("meta"),
        loss=loss.name,
        parameter=loss.parameter(),
        temperature=2.0,
        soft_scale=0.9,
        hard_scale=0.1,
    )
    target = torch.empty_like(logits) if gradient else None
    backend.divergence(logits, _meta(64, vocab, dtype=teacher), target, call)


def launch_trilateral(
    vocab: int, student: torch.dtype, teacher: torch.dtype, mean: torch.dtype | None, *, squared: bool, gradient: bool
) -> None:
    """What `trilateral` launches for 64 rows of this length and, where a gradient is wanted, its backward."""
    logits = _meta(64, vocab, dtype=student)
    arguments = (
        logits,
        _meta(64, vocab, dtype=teacher),
        None if mean is None else _meta(vocab, vocab, dtype=mean),
        _meta(64, STATISTICS) if gradient else None,
    )
    call = Trilateral(_meta(64, dtype=torch.int64), squared)
    distances = backend.trilateral(*arguments, call)
    if gradient:
        upstream, target = torch.empty_like(distances), torch.empty_like(logits)
        backend.trilateral_backward(*arguments, distances, upstream, target, call)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def main(target: str, name: str, vocab: str, dtype: str = "bfloat16") -> None:
    length, kind = int(vocab), getattr(torch, dtype)
    for first, second in itertools.product((False, True), (False, True)):
        with compiling_for(target) as compiled:
            if name == "trilateral":
                mean = torch.float32 if first else None
                launch_trilateral(length, kind, kind, mean, squared=False, gradient=second)
                print(f"class_mean={first!s:5} gradient={second!s:5}")
            else:
                launch_divergence(example(name), length, kind, kind, gradient=second, labels=first)
                print(f"labels={first!s:5} gradient={second!s:5}")
        for kernel in compiled:
            print("   ", usage(kernel))


if __name__ == "__main__":
    main(*sys.argv[1:])
