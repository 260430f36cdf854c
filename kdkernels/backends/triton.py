"""The Triton backend: NVIDIA and AMD GPUs, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

The functions of `KernelBackend` as a module. A loss and a schedule meet here, as a launch argument. Nothing below
waits for the device or copies to it, so every function can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES
from . import launch

OLDEST_TRITON = (3, 6)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run in this process, or None where it can."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    version = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST_TRITON:
        return f"Triton {'.'.join(map(str, OLDEST_TRITON))} or newer is needed, found {triton.__version__}"
    drivers = (backend.driver for backend in triton.backends.backends.values())
    if not launch.interpreted() and not any(driver.is_active() for driver in drivers):
        return "no GPU with a Triton driver (TRITON_INTERPRET=1, set before the import, runs it on CPU tensors)"
    return None


def unsupported(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend cannot take tensors of this device and these dtypes, or None where it can."""
    expected = "cpu" if launch.interpreted() else "cuda"
    if device.type != expected:
        return f"it takes {expected} tensors here, got {device.type}"
    for dtype in dtypes:
        if dtype not in DTYPES:
            return f"its arithmetic is float32 and its tensors float32, float16 or bfloat16, got {dtype}"
    return None


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
    """The row values, (rows,) float32, and their gradient into `gradient`; see `KernelBackend.divergence`."""
    from ..kernels.divergence_resident import divergence_resident
    from ..kernels.divergence_row import PerRow, Scalars, Strides, Tensors
    from ..kernels.divergence_split import split_finish, split_sums, split_terms
    from ..kernels.divergence_streaming import divergence_streaming

    rows, vocab = student.shape
    value = torch.empty(rows, dtype=torch.float32, device=student.device)
    vectors = (None if vector is None else vector.contiguous() for vector in (labels, soft_weight, hard_weight))
    tensors = Tensors(student, teacher, gradient)
    arguments = (
        tensors,
        Strides(*launch.strides(tensors)),
        PerRow(value, *vectors),
        Scalars(1.0 / temperature, float(parameter), float(soft_scale), float(hard_scale)),
    )
    term = {"TERM": LOSSES[loss].term, "BALANCED": LOSSES[loss].balanced}
    per_class = table is not None and table.shape[1] > 1
    kernels = (split_sums, split_terms, split_finish)
    if not per_class and launch.over_parts(config.SPLIT, kernels, arguments, _table(table), tensors, term):
        return value
    configs = config.DIVERGENCE if table is None else config.DIVERGENCE_WITH_TABLE
    configs = config.DIVERGENCE_PER_CLASS if per_class else configs
    row = config.choose_by_size(configs, vocab * student.element_size())
    kernels = (divergence_resident, divergence_streaming)
    launch.over_whole_rows(row, kernels, arguments, _table(table), tensors, term)
    return value


def _table(table: Tensor | None) -> Any:
    """`Loss.table` as a term gets it."""
    from triton.language import constexpr

    from ..kernels.divergence_row import Table

    if table is None:
        return None
    orders, width = table.shape
    return Table(table, width, constexpr(orders), constexpr(width > 1))


def softmax(logits: Tensor, output: Tensor, *, temperature: float, log: bool) -> None:
    """output = softmax(logits / temperature) or its logarithm, row by row."""
    from ..kernels.softmax import softmax_resident, softmax_streaming

    rows, vocab = logits.shape
    arguments = (logits, output, logits.stride(0), output.stride(0), 1.0 / temperature, rows, vocab)
    row = config.choose(config.SOFTMAX, vocab)
    launch.over_rows(row, softmax_resident, softmax_streaming, arguments, (logits, output), {"LOG": log})


def softmax_backward(upstream: Tensor, output: Tensor, gradient: Tensor, *, temperature: float, log: bool) -> None:
    """gradient = the derivative of `softmax` at `output`, contracted with `upstream`."""
    from ..kernels.softmax import softmax_backward_resident, softmax_backward_streaming

    rows, vocab = output.shape
    tensors = (upstream, output, gradient)
    arguments = (tensors, launch.strides(tensors), 1.0 / temperature, rows, vocab)
    row = config.choose(config.SOFTMAX_BACKWARD, vocab)
    launch.over_rows(row, softmax_backward_resident, softmax_backward_streaming, arguments, tensors, {"LOG": log})


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor in place, factor 0-d or (rows,); where it is exactly 1 nothing is read or written."""
    from ..kernels.scale import scale_rows as kernel

    factor_stride = factor.stride(0) if factor.dim() else 0
    arguments = (gradient, factor, gradient.stride(0), factor_stride, *gradient.shape)
    launch.over_tiles(config.SCALE, kernel, arguments, gradient, {})


def _exact(**meta: Any) -> dict[str, Any]:
    """Products are rounded before they are subtracted: fused, S - P would not be 0 where both are the same product."""
    return meta | {"enable_fp_fusion": False}


def trilateral(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    class_mean: Tensor | None,
    statistics: Tensor | None,
    *,
    squared: bool,
    ignore_index: int,
) -> Tensor:
    """The distances, (rows, 3) or (rows, 5) float32; see `KernelBackend.trilateral`."""
    from ..kernels.geometry import trilateral_resident, trilateral_streaming
    from ..kernels.geometry_call import PerRow, Strides, Tensors

    rows, vocab = student.shape
    distances = torch.empty(rows, 3 if class_mean is None else 5, dtype=torch.float32, device=student.device)
    tensors = Tensors(student, teacher, class_mean, None)
    per_row = PerRow(labels, distances, statistics, None)
    arguments = (tensors, Strides(*launch.strides(tensors)), per_row, ignore_index, rows, vocab)
    row = config.choose(config.TRILATERAL, vocab)
    launch.over_rows(row, trilateral_resident, trilateral_streaming, arguments, tensors, _exact(SQUARED=squared))
    return distances


def trilateral_backward(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    class_mean: Tensor | None,
    statistics: Tensor,
    distances: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    *,
    squared: bool,
    ignore_index: int,
) -> None:
    """gradient = the derivative of `trilateral` in the student, contracted with `upstream`."""
    from ..kernels.geometry import trilateral_backward as kernel
    from ..kernels.geometry_call import PerRow, Strides, Tensors

    tensors = Tensors(student, teacher, class_mean, gradient)
    per_row = PerRow(labels, distances, statistics, upstream)
    arguments = (tensors, Strides(*launch.strides(tensors)), per_row, ignore_index, *student.shape)
    launch.over_tiles(config.TRILATERAL_BACKWARD, kernel, arguments, gradient, _exact(SQUARED=squared))
