"""The compiled backend: C++ on CPUs, called by address (the extension knows no torch)."""

from __future__ import annotations

import os

import torch  # before the extension: libgomp then is the one that torch has loaded, and there is one thread pool
from torch import Tensor

try:
    from .. import _C

    _MISSING = None
except ImportError as error:
    _C = None
    _MISSING = f"the compiled extension is missing ({error}); reinstall kdkernels with a C++ compiler at hand"

# The extension's numbers for dtypes (csrc/cpu/kernels.h).
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_NONE = (0, 0, 0)
_LOSSES: dict[str, int] = {} if _C is None else {name: number for number, name in enumerate(_C.losses())}

if _C is not None and os.environ.get("KDKERNELS_ISA"):
    _C.use_instruction_set(os.environ["KDKERNELS_ISA"])


def unavailable() -> str | None:
    return _MISSING


def unsupported(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    return None if device.type == "cpu" else f"it was built for CPU tensors, got {device.type}"


def divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    soft_weight: Tensor | None,
    hard_weight: Tensor | None,
    gradient: Tensor | None,
    *,
    loss: str,
    parameter: float,
    table: Tensor | None,
    temperature: float,
    soft_scale: float,
    hard_scale: float,
) -> Tensor:
    rows, vocab = student.shape
    wide = student.dtype == torch.float64 or teacher.dtype == torch.float64
    values = torch.empty(rows, dtype=torch.float64 if wide else torch.float32, device=student.device)
    _C.divergence(
        _LOSSES[loss],
        _matrix(student),
        _matrix(teacher),
        _NONE if gradient is None else _matrix(gradient),
        _address(labels),
        _address(soft_weight),
        _address(hard_weight),
        values.data_ptr(),
        rows,
        vocab,
        temperature,
        soft_scale,
        hard_scale,
        parameter,
        _address(table),
        0 if table is None else table.shape[0],
        wide,
        torch.get_num_threads(),
    )
    return values


def softmax(logits: Tensor, output: Tensor, *, temperature: float, log: bool) -> None:
    wide = logits.dtype == torch.float64
    _C.softmax(_matrix(logits), _matrix(output), *logits.shape, temperature, log, wide, torch.get_num_threads())


def softmax_backward(upstream: Tensor, output: Tensor, gradient: Tensor, *, temperature: float, log: bool) -> None:
    wide = output.dtype == torch.float64
    matrices = (_matrix(upstream), _matrix(output), _matrix(gradient))
    _C.softmax_backward(*matrices, *output.shape, temperature, log, wide, torch.get_num_threads())


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    if factor.dim() == 0 and factor.item() == 1.0:
        return
    wide = gradient.dtype == torch.float64
    factor = factor.to(torch.float64 if wide else torch.float32)
    shape = gradient.shape
    _C.scale_rows(_matrix(gradient), factor.data_ptr(), factor.dim() > 0, *shape, wide, torch.get_num_threads())


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), _DTYPES[tensor.dtype]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def instruction_sets() -> str:
    """What the compiled extension uses and could use on this processor."""
    if _C is None:
        return "missing"
    return f"{_C.instruction_set()} (of {', '.join(_C.instruction_sets())})"
