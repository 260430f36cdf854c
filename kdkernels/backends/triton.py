"""The Triton backend: NVIDIA and AMD GPUs, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

The functions of `KernelBackend` as a module. A loss and a schedule meet here, as a launch argument. Nothing below
waits for the device or copies to it, so every function can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

import torch
from torch import Tensor

from ..kernels import config
from ..losses import LOSSES

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
    if not _interpreted() and not any(backend.driver.is_active() for backend in triton.backends.backends.values()):
        return "no GPU with a Triton driver (TRITON_INTERPRET=1, set before the import, runs it on CPU tensors)"
    return None


def unsupported(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend cannot take tensors of this device and these dtypes, or None where it can."""
    expected = "cpu" if _interpreted() else "cuda"
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
    from ..kernels.divergence_streaming import divergence_streaming

    rows, vocab = student.shape
    value = torch.empty(rows, dtype=torch.float32, device=student.device)
    vectors = (None if vector is None else vector.contiguous() for vector in (labels, soft_weight, hard_weight))
    arguments = (
        Tensors(student, teacher, gradient),
        Strides(student.stride(0), teacher.stride(0), 0 if gradient is None else gradient.stride(0)),
        PerRow(value, *vectors),
        Scalars(1.0 / temperature, float(parameter), float(soft_scale), float(hard_scale)),
        table,
        rows,
        vocab,
    )
    term = {"TERM": LOSSES[loss].term, "BALANCED": LOSSES[loss].balanced}
    row = config.choose(config.DIVERGENCE, vocab)
    _walk(row, divergence_resident, divergence_streaming, arguments, (student, teacher, gradient), term)
    return value


def softmax(logits: Tensor, output: Tensor, *, temperature: float, log: bool) -> None:
    """output = softmax(logits / temperature) or its logarithm, row by row."""
    from ..kernels.softmax import softmax_resident, softmax_streaming

    rows, vocab = logits.shape
    arguments = (logits, output, logits.stride(0), output.stride(0), 1.0 / temperature, rows, vocab)
    row = config.choose(config.SOFTMAX, vocab)
    _walk(row, softmax_resident, softmax_streaming, arguments, (logits, output), {"LOG": log})


def softmax_backward(upstream: Tensor, output: Tensor, gradient: Tensor, *, temperature: float, log: bool) -> None:
    """gradient = the derivative of `softmax` at `output`, contracted with `upstream`."""
    from ..kernels.softmax import softmax_backward_resident, softmax_backward_streaming

    rows, vocab = output.shape
    tensors = (upstream, output, gradient)
    arguments = (tensors, tuple(tensor.stride(0) for tensor in tensors), 1.0 / temperature, rows, vocab)
    row = config.choose(config.SOFTMAX_BACKWARD, vocab)
    _walk(row, softmax_backward_resident, softmax_backward_streaming, arguments, tensors, {"LOG": log})


def scale_rows(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor in place, factor 0-d or (rows,); where it is exactly 1 nothing is read or written."""
    from ..kernels.scale import scale_rows as kernel

    rows, vocab = gradient.shape
    row = config.SCALE
    block = min(_power_of_two(vocab), row.tile)
    tile_rows = row.tile // block
    factor_stride = factor.stride(0) if factor.dim() else 0
    grid = (_ceil_div(rows, tile_rows), _ceil_div(vocab, block * row.steps))
    arguments = (gradient, factor, gradient.stride(0), factor_stride, rows, vocab)
    meta = {"ROWS": tile_rows, "BLOCK": block, "STEPS": row.steps}
    _launch(kernel, grid, arguments, gradient, row.threads, meta)


def _walk(
    row: config.Resident | config.Streaming,
    resident: Any,
    streaming: Any,
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    meta: dict[str, Any],
) -> None:
    """Launch the resident or the streaming form, as this row of the launch configs says."""
    present = [tensor for tensor in tensors if tensor is not None]
    rows, vocab = present[0].shape
    if isinstance(row, config.Resident):
        meta |= {"ROWS": row.rows, "BLOCK": _power_of_two(vocab)}
        _launch(resident, (_ceil_div(rows, row.rows),), arguments, present[0], row.threads, meta)
        return
    contiguous = all(tensor.data_ptr() % 16 == 0 and tensor.stride(0) % 16 == 0 for tensor in present)
    # By the first tensor: with the narrower of two, Triton trades tiles through shared memory where the second is it.
    width = 16 // present[0].element_size() if contiguous else row.narrow
    meta |= {"LANES": row.threads, "WIDTH": width, "CONTIGUOUS": contiguous}
    if _target()[0] == "cuda":
        meta["maxnreg"] = row.registers  # an option of NVIDIA's compiler only
    _launch(streaming, (rows,), arguments, present[0], row.threads, meta)


def _launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], where: Tensor, threads: int, meta: dict[str, Any]
) -> None:
    if where.numel() == 0:
        return
    guard = torch.cuda.device(where.device) if where.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[grid](*arguments, **meta, num_warps=threads // _target()[1])


def _target() -> tuple[str, int]:
    """("cuda" | "hip" | "interpreter", threads of a warp)."""
    if _interpreted():
        return "interpreter", 32
    from triton.runtime.driver import driver

    target = driver.active.get_current_target()
    return target.backend, target.warp_size


def _interpreted() -> bool:
    """Whether the kernels were decorated under TRITON_INTERPRET=1, which counts only at the import of a kernel."""
    import triton

    return not isinstance(LOSSES["forward_kl"].term, triton.JITFunction)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
