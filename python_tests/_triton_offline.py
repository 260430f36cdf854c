"""Compile exactly what the Triton backend would launch, for a GPU that is not here, and read what the compiler used.

    python python_tests/_triton_offline.py sm_90 jensen_shannon 32000 bfloat16

prints, for each launch, the registers per thread, the bytes of stack (a spill takes stack), the scalar and vector
registers that AMD's compiler spilled and the bytes of shared memory per program.
"""

from __future__ import annotations

import contextlib
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

from kdkernels.backends import triton as backend
from kdkernels.losses import LOSSES

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


def launch_divergence(
    loss: str, vocab: int, student: torch.dtype, teacher: torch.dtype, *, gradient: bool, labels: bool
) -> None:
    """What `divergence` launches for 64 rows of this length; meta tensors have addresses that are aligned."""
    logits = torch.empty(64, vocab, dtype=student, device="meta")
    weight = torch.empty(64, device="meta")
    backend.divergence(
        logits,
        torch.empty(64, vocab, dtype=teacher, device="meta"),
        torch.empty(64, dtype=torch.int64, device="meta") if labels else None,
        weight,
        weight if labels else None,
        torch.empty_like(logits) if gradient else None,
        loss=loss,
        parameter=LOSSES[loss]().parameter(),
        table=LOSSES[loss]().table(),
        temperature=2.0,
        soft_scale=0.9,
        hard_scale=0.1,
    )


def main(target: str, loss: str, vocab: str, dtype: str = "bfloat16") -> None:
    kind = getattr(torch, dtype)
    for labels in (False, True):
        for gradient in (False, True):
            with compiling_for(target) as compiled:
                launch_divergence(loss, int(vocab), kind, kind, gradient=gradient, labels=labels)
            print(f"gradient={gradient!s:5} labels={labels!s:5}", usage(compiled[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
