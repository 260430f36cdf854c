"""What users pass to this package's functions, and every message: argument, rule, what came."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ... import checks
from .blocks import blocks

LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
_LARGEST_JITTER = 1.0 / torch.finfo(torch.float64).eps


def model(value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(value).__name__}")
    if isinstance(value, (DistributedDataParallel, DataParallel)):
        raise ValueError(f"model must be the module itself, got {type(value).__name__}: pass model.module")
    if isinstance(value, torch.jit.ScriptModule):
        raise ValueError(f"model must not be compiled by torch.jit, got {type(value).__name__}: pass its original")
    if not any(parameter.requires_grad for parameter in value.parameters()):
        raise ValueError("model must have a parameter that requires grad, got none")


def inputs(x: object) -> tuple[Tensor, ...]:
    several = x if isinstance(x, tuple) else (x,)
    if not several:
        raise ValueError("x must be a tensor or a tuple of at least one, got an empty tuple")
    for each in several:
        if not isinstance(each, Tensor):
            raise TypeError(f"x must be a torch.Tensor or a tuple of them, got {type(each).__name__}")
        if each.dim() == 0:
            raise ValueError("x must have shape (n, ...), got ()")
    lengths = [len(each) for each in several]
    if len(set(lengths)) > 1:
        raise ValueError(f"x must hold as many examples in each of its tensors, got {lengths}")
    if lengths[0] == 0:
        raise ValueError(f"x must hold at least one example, got shape {tuple(several[0].shape)}")
    return tuple(each.detach() for each in several)


def outputs(value: object) -> None:
    if isinstance(value, str):
        if value not in ("all", "sum"):
            raise ValueError(f"outputs must be 'all', 'sum' or the int of one output, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"outputs must be 'all', 'sum' or the int of one output, got {type(value).__name__}")


def output_index(value: int, width: int) -> None:
    if not -width <= value < width:
        raise ValueError(f"outputs must lie in [{-width}, {width}), the model having {width} outputs, got {value}")


def at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def kernel_dtype(value: object) -> None:
    if value is not None and value not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32, torch.float64 or None, got {value!r}")


def model_outputs(value: Any, examples: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"model must return a torch.Tensor of outputs, got {type(value).__name__}: wrap it in a module that "
            "returns the logits"
        )
    if not value.dtype.is_floating_point:
        raise TypeError(f"model must return floating-point outputs, got {value.dtype}")
    if value.dim() not in (1, 2) or value.shape[0] != examples or value.shape[-1] == 0:
        raise ValueError(
            f"model must return outputs of shape (n,) or (n, d), got {tuple(value.shape)} for n = {examples} examples"
        )
    if bool(value.isnan().any()):
        raise ValueError("model must return outputs that are numbers, got a NaN among them")
    if value.requires_grad:
        raise ValueError(
            "model must reach its parameters by their registered names alone (self.layer.weight), got outputs that "
            "require grad through a tensor kept elsewhere (in a list, say): register it or detach it"
        )


def by_itself(alone: Tensor, batched: Tensor, number: int) -> None:
    """An example's outputs, alone and as a row of those of a batch (n, ...): rounding may differ, nothing else.

    Half of the digits may, of the batch's largest output: a batch of one can go to another algorithm, and on an
    accelerator one of the two may use TF32, whose ten bits differ by some 1e-3 after a few layers. Outputs near zero
    for which numbers of size one cancel, as in networks that begin at zero by construction, have the latter's rounding.
    """
    # Flat: a model that ends in squeeze() gives one example no batch dimension.
    alone, row = alone.reshape(-1), batched[number].reshape(-1)
    came = f"{len(alone)} and {len(row)} outputs"
    if alone.shape == row.shape:
        rounding = torch.finfo(alone.dtype).eps
        digits = 2.0**-10 if alone.dtype == torch.float32 and not alone.is_cpu else rounding
        room = math.sqrt(digits) * batched.nan_to_num(0.0, 0.0, 0.0).abs().max() + 16 * rounding
        # Equal infinities, of classes that are masked out, are no difference.
        difference = torch.where(alone == row, 0.0, (alone - row).abs())
        if bool((difference <= room).all()):
            return
        came = f"a difference of {float(difference.max()):.3g}"
    raise ValueError(
        "model must in eval mode give an example the same outputs alone and in a batch (no statistics of the batch, "
        f"no random numbers), got {came}"
    )


def derivatives(squares: Tensor) -> None:
    """The diagonal of K, which bounds the rest of it: |K_ij| <= sqrt(K_ii K_jj)."""
    wrong = ~squares.isfinite()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        came = f"{float(squares[row])} in row {row} of the kernel"
        raise ValueError(f"model must have derivatives whose squares have finite sums in {squares.dtype}, got {came}")


def _numbers(name: str, value: object, hint: str = "") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in checks.LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64{hint}, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def gram(name: str, value: object) -> float:
    """Square, floating, finite, symmetric up to the square root of its dtype's rounding; its largest entry."""
    _numbers(name, value)
    if value.dim() != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape (N, N) with N >= 1, got {tuple(value.shape)}")
    sizes, asymmetries = [], []
    for start, rows in blocks(value.detach()):
        columns = value.detach()[start:, start : start + len(rows)]
        sizes.append(rows.abs().max())
        asymmetries.append((rows[:, start:] - columns.mT).abs().max())
    largest, asymmetry = (float(torch.stack(each).max()) for each in (sizes, asymmetries))
    if not math.isfinite(largest):
        raise ValueError(f"{name} must be finite, got an entry of size {largest}")
    if largest == 0:
        raise ValueError(f"{name} must not be zero throughout")
    if asymmetry > math.sqrt(torch.finfo(value.dtype).eps) * largest:
        raise ValueError(
            f"{name} must be symmetric, got entries that differ from their mirror image by {asymmetry:.3g}, the "
            f"largest entry being {largest:.3g}"
        )
    return largest


def stacked(targets: object, gram: Tensor) -> tuple[Tensor, int]:
    """Targets (n,), (n, d) or (..., n, d) as float64 (..., N), and n."""
    _numbers("targets", targets, " (see `residual`)")
    _beside("targets", targets, "gram", gram)
    size, shape = len(gram), tuple(targets.shape)
    whole = shape[-2:] if targets.dim() > 1 else (*shape, 1)
    if targets.dim() == 0 or whole[0] * whole[1] != size:
        hint = f": for {shape[0]} sets of one output each, {(*shape, 1)}" if shape[1:] == (size,) else ""
        raise ValueError(
            f"targets must have shape (n,), (n, d) or (..., n, d) with n * d = {size}, the rows of gram, got "
            f"{shape}{hint}"
        )
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets must be finite, got an infinity or a NaN among them")
    return targets.detach().double().reshape(*shape[:-2], size), whole[0]


def jitter(value: object) -> None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"jitter must be 'auto' or a number, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"jitter must be 'auto' or a number, got {type(value).__name__}")
    elif not 0.0 <= value <= _LARGEST_JITTER:
        raise ValueError(
            f"jitter must lie in [0, {_LARGEST_JITTER:.2g}], beyond which float64 keeps nothing of gram, got {value}"
        )


def other(value: object, gram_matrix: Tensor) -> float:
    """A second Gram matrix, that goes with the first; its largest entry."""
    if isinstance(value, Tensor):
        _beside("other", value, "gram", gram_matrix)
    largest = gram("other", value)
    if value.shape != gram_matrix.shape:
        raise ValueError(f"other must have the shape of gram {tuple(gram_matrix.shape)}, got {tuple(value.shape)}")
    return largest


def not_zero(sizes: Tensor) -> None:
    if bool((sizes == 0).any()):
        raise ValueError("targets must not be zero throughout: their alignment is not defined")


def space(value: object, temperature: float) -> None:
    if value not in ("probabilities", "logits"):
        raise ValueError(f"space must be 'probabilities' or 'logits', got {value!r}")
    checks.temperature(temperature)
    if value == "logits" and temperature != 1:
        raise ValueError(f"temperature must be 1 in the space of logits, got {temperature}")


def outputs_of_student(value: object) -> None:
    checks.logits("student", value)
    if value.dim() != 2:
        raise ValueError(f"student must have shape (n, d), got {tuple(value.shape)}")


def teacher(value: Tensor, student: Tensor) -> None:
    checks.logits("teacher_or_labels", value)
    if value.shape != student.shape:
        raise ValueError(
            f"teacher_or_labels must have the shape of student {tuple(student.shape)}, got {tuple(value.shape)}"
        )
    _beside("teacher_or_labels", value, "student", student)


def labels(value: Tensor, student: Tensor, space: str, temperature: float) -> None:
    rows, classes = student.shape
    if value.shape != (rows,):
        raise ValueError(f"teacher_or_labels must be labels of shape ({rows},), got {tuple(value.shape)}")
    _beside("teacher_or_labels", value, "student", student)
    if space == "logits":
        raise ValueError("space must be 'probabilities' where labels are given, got 'logits'")
    if temperature != 1:
        raise ValueError(f"temperature must be 1 where labels are given, got {temperature}")
    wrong = (value.long() < 0) | (value.long() >= classes)
    if bool(wrong.any()):
        raise ValueError(f"teacher_or_labels must lie in [0, {classes}), got {int(value[wrong][0])}")


def _beside(name: str, value: Tensor, first: str, tensor: Tensor) -> None:
    if value.device != tensor.device:
        raise ValueError(f"{name} must be on the device of {first} {tensor.device}, got {value.device}")


def finite_residual(value: Tensor) -> None:
    wrong = ~value.isfinite().all(-1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"student and teacher_or_labels must differ by finite numbers, got others in row {row}")
