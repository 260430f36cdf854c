"""The Triton backend: NVIDIA and AMD GPUs, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

The functions of `KernelBackend` as a module. A loss and a schedule meet here, as a launch argument. Nothing below
waits for the device or copies to it, so every function can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES
from . import calls, compiled, launch

OLDEST_TRITON = (3, 6)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LOG2_E = 1 / math.log(2)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run in this process, or None where it can."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if compiled.version() < OLDEST_TRITON:
        return f"Triton {'.'.join(map(str, OLDEST_TRITON))} or newer is needed, found {triton.__version__}"
    drivers = (backend.driver for backend in triton.backends.backends.values())
    if not launch.interpreted() and not any(driver.is_active() for driver in drivers):
        return "no GPU with a Triton driver (TRITON_INTERPRET=1, set before its first use, runs it on CPU tensors)"
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


@functools.cache
def _kernels() -> SimpleNamespace:
    """The kernels, imported at the first launch, because Triton is an extra; once, because a statement costs 1 us."""
    from ..kernels import (
        divergence_resident,
        divergence_row,
        divergence_split,
        divergence_streaming,
        geometry,
        geometry_call,
        scale,
        softmax,
    )

    split = (divergence_split.split_sums, divergence_split.split_terms, divergence_split.split_finish)
    forms = (divergence_resident.divergence_resident, divergence_streaming.divergence_streaming)
    return SimpleNamespace(
        divergence=forms, split=split, row=divergence_row, softmax=softmax, scale=scale, geometry=geometry,
        geometry_call=geometry_call,
    )  # fmt: skip


def divergence(student: Tensor, teacher: Tensor, gradient: Tensor | None, call: calls.Divergence) -> Tensor:
    """The row values, (rows,) float32, and their gradient into `gradient`; see `KernelBackend.divergence`."""
    kernels = _kernels()
    value = torch.empty(len(student), dtype=torch.float32, device=student.device)
    table = call.table
    tensors = kernels.row.Tensors(student, teacher, gradient)
    arguments = (
        tensors,
        kernels.row.Strides,
        kernels.row.PerRow(value, call.labels, call.soft_weight, call.hard_weight),
        kernels.row.Scalars(
            1.0 / call.temperature, float(call.parameter), float(call.soft_scale), float(call.hard_scale)
        ),
        _table(table),
    )
    term = {"TERM": LOSSES[call.loss].term, "BALANCED": LOSSES[call.loss].balanced}
    per_class = table is not None and table.shape[1] > 1
    if not per_class and launch.over_parts(config.SPLIT, kernels.split, arguments, tensors, term):
        return value
    plain = table is None and call.labels is None
    configs = config.DIVERGENCE if plain else config.DIVERGENCE_WITH_MORE
    configs = config.DIVERGENCE_PER_CLASS if per_class else configs
    launch.over_rows(configs, kernels.divergence, arguments, tensors, term)
    return value


def _table(table: Tensor | None) -> Any:
    """`Loss.table` as a term gets it."""
    if table is None:
        return None
    from triton.language import constexpr

    orders, width = table.shape
    return _kernels().row.Table(table, width, constexpr(orders), constexpr(width > 1))


def softmax(logits: Tensor, output: Tensor, call: calls.Softmax) -> None:
    """output = softmax(logits / temperature) or its logarithm, row by row."""
    kernels = _kernels().softmax
    forms = (kernels.softmax_resident, kernels.softmax_streaming)
    _softmax(config.SOFTMAX, forms, kernels.Tensors(logits, None, output), call)


def softmax_backward(upstream: Tensor, output: Tensor, gradient: Tensor, call: calls.Softmax) -> None:
    """gradient = the derivative of `softmax` at `output`, contracted with `upstream`."""
    kernels = _kernels().softmax
    forms = (kernels.softmax_backward_resident, kernels.softmax_backward_streaming)
    _softmax(config.SOFTMAX_BACKWARD, forms, kernels.Tensors(output, upstream, gradient), call)


def _softmax(configs: Any, forms: tuple[Any, Any], tensors: Any, call: calls.Softmax) -> None:
    kernels = _kernels().softmax
    scale = kernels.Scale(1.0 / call.temperature, _LOG2_E / call.temperature)
    arguments = (tensors, kernels.Strides, scale)
    launch.over_rows(configs, forms, arguments, tensors, {"LOG": call.log})


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor in place, factor 0-d or (rows,); where it is exactly 1 nothing is read or written."""
    launch.scale(config.SCALE, _kernels().scale.scale_rows, gradient, factor)


def _exact(**meta: Any) -> dict[str, Any]:
    """Products are rounded before they are subtracted: fused, S - P would not be 0 where both are the same product."""
    return meta | {"enable_fp_fusion": False}


def trilateral(
    student: Tensor, teacher: Tensor, class_mean: Tensor | None, statistics: Tensor | None, call: calls.Trilateral
) -> Tensor:
    """The distances, (rows, 3) or (rows, 5) float32; see `KernelBackend.trilateral`."""
    kernels, form = _kernels().geometry, _kernels().geometry_call
    distances = torch.empty(len(student), 3 if class_mean is None else 5, dtype=torch.float32, device=student.device)
    tensors = form.Tensors(student, teacher, class_mean, None)
    per_row = form.PerRow(call.labels, distances, statistics, None)
    arguments = (tensors, form.Strides, per_row, call.ignore_index)
    forms = (kernels.trilateral_resident, kernels.trilateral_streaming)
    launch.over_rows(config.TRILATERAL, forms, arguments, tensors, _exact(SQUARED=call.squared))
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
    """gradient = the derivative of `trilateral` in the student, contracted with `upstream`."""
    kernels, form = _kernels().geometry, _kernels().geometry_call
    tensors = form.Tensors(student, teacher, class_mean, gradient)
    per_row = form.PerRow(call.labels, distances, statistics, upstream)
    arguments = (tensors, form.Strides, per_row, call.ignore_index)
    launch.over_tiles(
        config.TRILATERAL_BACKWARD, kernels.trilateral_backward, arguments, tensors, _exact(SQUARED=call.squared)
    )
