"""The compiled backend: C++ on CPUs, CUDA C++ on GPUs, called by address (the extension knows no torch)."""

from __future__ import annotations

import functools
import os

import torch  # before the extension: libgomp then is the one that torch has loaded, and there is one thread pool
from torch import Tensor

from . import calls
from .extension import INTERFACE, missing, stale

try:
    from .. import _C

    _MISSING = None
except ImportError as error:
    _C = None
    _MISSING = missing(error)
if _C is not None and getattr(_C, "interface", 1) != INTERFACE:
    _MISSING, _C = stale(_C.__file__), None

# The extension's numbers for dtypes (csrc/calls.h).
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_LOSSES: dict[str, int] = {} if _C is None else {name: number for number, name in enumerate(_C.losses())}

if _C is not None and os.environ.get("KDKERNELS_ISA"):
    _C.use_instruction_set(os.environ["KDKERNELS_ISA"])


def unavailable() -> str | None:
    return _MISSING


def unsupported(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip:
        return f"it takes CPU and CUDA tensors, got {device.type}{' of ROCm' if torch.version.hip else ''}"
    reason = _cuda_unavailable()
    if reason:
        return f"its CUDA kernels cannot run: {reason}"
    if torch.float64 in dtypes:
        return "its CUDA arithmetic is float32, got torch.float64"
    if len(set(dtypes)) > 1:
        return f"its CUDA kernels take a student and a teacher of one dtype, got {' and '.join(map(str, dtypes))}"
    return None


@functools.cache
def _cuda_unavailable() -> str:
    return _C.cuda_unavailable()


def divergence(student: Tensor, teacher: Tensor, gradient: Tensor | None, call: calls.Divergence) -> Tensor:
    rows, vocab = student.shape
    wide = student.dtype == torch.float64 or teacher.dtype == torch.float64
    values = student.new_empty(rows, dtype=torch.float64 if wide else torch.float32)
    table = call.table
    _C.divergence(
        _LOSSES[call.loss],
        _matrix(student),
        _matrix(teacher),
        None if gradient is None else _matrix(gradient),
        _address(call.labels),
        _address(call.soft_weight),
        _address(call.hard_weight),
        values.data_ptr(),
        rows,
        vocab,
        call.temperature,
        call.soft_scale,
        call.hard_scale,
        call.parameter,
        None if table is None else (table.data_ptr(), *table.shape),
        wide,
        _where(student),
    )
    return values


def softmax(logits: Tensor, output: Tensor, call: calls.Softmax) -> None:
    wide = logits.dtype == torch.float64
    settings = (call.temperature, call.log, wide, _where(logits))
    _C.softmax(_matrix(logits), _matrix(output), *logits.shape, *settings)


def softmax_backward(upstream: Tensor, output: Tensor, gradient: Tensor, call: calls.Softmax) -> None:
    wide = output.dtype == torch.float64
    matrices = (_matrix(upstream), _matrix(output), _matrix(gradient))
    _C.softmax_backward(*matrices, *output.shape, call.temperature, call.log, wide, _where(output))


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    if factor.dim() == 0 and factor.is_cpu and factor.item() == 1.0:
        return  # on a device the kernel itself looks: to ask here would wait for it
    wide = gradient.dtype == torch.float64
    factor = factor.to(torch.float64 if wide else torch.float32)
    shape = gradient.shape
    _C.scale_rows(_matrix(gradient), factor.data_ptr(), factor.dim() > 0, *shape, wide, _where(gradient))


def trilateral(
    student: Tensor, teacher: Tensor, class_mean: Tensor | None, statistics: Tensor | None, call: calls.Trilateral
) -> Tensor:
    rows, vocab = student.shape
    wide = student.dtype == torch.float64 or teacher.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    distances = student.new_empty((rows, 3 if class_mean is None else 5), dtype=dtype)
    _C.trilateral(
        *_matrices(student, teacher, class_mean),
        _address(call.labels),
        distances.data_ptr(),
        _address(statistics),
        rows,
        vocab,
        call.ignore_index,
        call.squared,
        wide,
        _where(student),
    )
    return distances


def trilateral_backward(
    student: Tensor,
    teacher: Tensor,
    class_mean: Tensor | None,
    statistics: Tensor,
    distances: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    call: calls.Trilateral,
) -> None:
    rows, vocab = student.shape
    _C.trilateral_backward(
        *_matrices(student, teacher, class_mean, gradient),
        _address(call.labels),
        distances.data_ptr(),
        statistics.data_ptr(),
        upstream.data_ptr(),
        rows,
        vocab,
        call.ignore_index,
        call.squared,
        distances.dtype == torch.float64,
        _where(student),
    )


def _where(tensor: Tensor) -> tuple[int, int]:
    """(-1, threads) on the CPU, (device, stream) on a GPU."""
    if tensor.is_cpu:
        return -1, torch.get_num_threads()
    device = tensor.device.index
    return device, torch.cuda.current_stream(device).cuda_stream


def _matrices(*tensors: Tensor | None) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(None if tensor is None else _matrix(tensor) for tensor in tensors)


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), _DTYPES[tensor.dtype]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def instruction_sets() -> str:
    """What the compiled extension uses and could use on this processor."""
    if _C is None:
        return "missing"
    return f"{_C.instruction_set()} (of {', '.join(_C.instruction_sets())})"


def cuda_kernels() -> str:
    """Whether the compiled extension can run its CUDA kernels here, or why not."""
    return "missing" if _C is None else _cuda_unavailable() or "available"
