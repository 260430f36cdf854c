"""The CUDA schedules of csrc/cuda compiled for this processor: what a GPU's threads do, done by as many host threads.

Only what a compiler for a device adds is missing: its own exp2, shuffles and shared memory of other blocks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from ctypes import CDLL, Structure, c_bool, c_char_p, c_double, c_int, c_int64, c_uint, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import kdkernels as kd

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}  # as in csrc/calls.h


class _Matrix(Structure):
    _fields_ = (("data", c_void_p), ("stride", c_int64), ("dtype", c_int))


class _Shape(Structure):
    _fields_ = (("blocks", c_int), ("threads", c_int), ("staged", c_bool))


class Plan(Structure):
    _fields_ = (("form", c_int), ("threads", c_int), ("lanes", c_int), ("cluster", c_int), ("shared", c_int64))


class Slice(Structure):
    _fields_ = (("first", c_int64), ("columns", c_int))


class Shares(Structure):
    _fields_ = (("rows", c_int64), ("columns", c_int), ("down", c_uint), ("across", c_uint))


class Team(NamedTuple):
    """Blocks and threads of each, powers of two; staged in shared memory, or each walk from where the logits lie."""

    blocks: int
    threads: int
    staged: bool = True

    def __str__(self) -> str:
        return f"{self.blocks}x{self.threads}" + ("" if self.staged else "-streaming")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def build(directory: Path, source: str, *flags: str) -> Path:
    """Compiles python_tests/<source> into the directory; what the compiler says is the error."""
    target = directory / (Path(source).stem + "".join(flag.replace("=", "-") for flag in flags))
    command = [compiler(), "-std=c++20", "-O1", "-pthread", f"-I{CSRC}", f"-I{HERE}"]
    done = subprocess.run([*command, *flags, str(HERE / source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source}: {done.stderr[-8000:]}")
    return target


@lru_cache(maxsize=1)
def load(directory: Path) -> Host:
    """The model, built once however many modules ask for it; products are fused with sums, as nvcc does it."""
    if compiler() is None:
        pytest.skip("there is no C++ compiler")
    return Host(build(directory, "_cuda_host_model.cpp", "-fPIC", "-shared", "-march=native", "-ffp-contract=fast"))


class Placed(NamedTuple):
    """A copy of a tensor (rows, vocab) whose rows lie in a buffer (rows, before + vocab + after) of NaN."""

    view: Tensor
    before: int
    buffer: Tensor

    def padding_is_untouched(self) -> bool:
        inside = range(self.before, self.before + self.view.shape[1])
        padding = self.buffer[:, [i for i in range(self.buffer.shape[1]) if i not in inside]]
        return bool(padding.isnan().all())


def placed(tensor: Tensor, before: int = 0, after: int = 0) -> Placed:
    """Rows start `before` elements past a boundary, and, as the row's length goes, elsewhere in every row."""
    rows, vocab = tensor.shape
    buffer = torch.full((rows, before + vocab + after), torch.nan, dtype=tensor.dtype)
    view = buffer[:, before : before + vocab]
    view.copy_(tensor)
    return Placed(view, before, buffer)


class Host:
    """The functions of _cuda_host_model.cpp, with tensors for arguments."""

    def __init__(self, path: Path) -> None:
        library = CDLL(str(path))
        shared = (_Shape, c_int)
        sizes = (c_int64, c_int64)
        m, p = _Matrix, c_void_p
        arguments = {
            "divergence": (*shared, c_int, m, m, m, p, p, p, p, *sizes, *[c_double] * 4, p, *sizes),
            "softmax": (*shared, m, m, *sizes, c_double, c_bool),
            "softmax_backward": (*shared, m, m, m, *sizes, c_double, c_bool),
            "trilateral": (*shared, m, m, m, p, p, p, *sizes, c_int64, c_bool),
            "trilateral_backward": (*shared, c_int64, m, m, m, m, p, p, p, p, *sizes, c_int64, c_bool),
            "scale": (*shared, c_int, m, p, c_bool, *sizes),
            "shares": (*sizes, c_int),
            "plan": (c_int64, c_int64, c_int, c_int64, c_int),
            "slice": (c_int64, c_int, c_int),
            "losses": (),
            "statistics": (),
        }
        results = {"plan": Plan, "shares": Shares, "slice": Slice, "losses": c_char_p}
        for name, types in arguments.items():
            function = getattr(library, f"kd_{name}")
            function.argtypes, function.restype = types, results.get(name, c_int)
            setattr(self, f"_{name}", function)
        self.plan, self.slice, self.shares = self._plan, self._slice, self._shares
        self.losses = self._losses().decode().rstrip(",").split(",")
        self.statistics = self._statistics()

    def divergence(
        self,
        team: Team,
        loss: kd.Loss,
        student: Tensor,
        teacher: Tensor,
        gradient: Tensor | None = None,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        soft_weight: Tensor | None = None,
        hard_weight: Tensor | None = None,
        soft_scale: float | None = None,
        hard_scale: float = 1.0,
    ) -> Tensor:
        """The values (rows,); `KernelBackend.divergence` says what the rest is. soft_scale: T^2 unless it is given."""
        values, table = student.new_full(student.shape[:1], torch.nan, dtype=torch.float32), loss.table(torch.float32)
        scale = temperature**2 if soft_scale is None else soft_scale
        per_row = (labels, soft_weight, hard_weight, values)
        self._call(
            self._divergence,
            team,
            DTYPES[student.dtype],
            self.losses.index(loss.name),
            *map(_matrix, (student, teacher, gradient)),
            *map(_address, per_row),
            *student.shape,
            *(1.0 / temperature, scale, hard_scale, loss.parameter()),
            _address(table),
            *((0, 0) if table is None else table.shape),
        )
        return values

    def softmax(self, team: Team, logits: Tensor, output: Tensor, temperature: float, log: bool) -> None:
        matrices = map(_matrix, (logits, output))
        self._call(self._softmax, team, DTYPES[logits.dtype], *matrices, *logits.shape, 1.0 / temperature, log)

    def softmax_backward(
        self, team: Team, output: Tensor, upstream: Tensor, gradient: Tensor, temperature: float, log: bool
    ) -> None:
        matrices = map(_matrix, (output, upstream, gradient))
        dtype, shape = DTYPES[output.dtype], output.shape
        self._call(self._softmax_backward, team, dtype, *matrices, *shape, 1.0 / temperature, log)

    def trilateral(
        self,
        team: Team,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        class_mean: Tensor | None = None,
        *,
        statistics: Tensor | None = None,
        squared: bool = False,
        ignore_index: int = -100,
    ) -> Tensor:
        """The distances (rows, 3 or 5)."""
        rows, vocab = student.shape
        distances = torch.full((rows, 3 if class_mean is None else 5), torch.nan)
        matrices = map(_matrix, (student, teacher, class_mean))
        per_row = map(_address, (labels, distances, statistics))
        dtype = DTYPES[student.dtype]
        self._call(self._trilateral, team, dtype, *matrices, *per_row, rows, vocab, ignore_index, squared)
        return distances

    def trilateral_backward(
        self,
        team: Team,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        class_mean: Tensor | None,
        statistics: Tensor,
        distances: Tensor,
        upstream: Tensor,
        gradient: Tensor,
        *,
        squared: bool = False,
        ignore_index: int = -100,
        step: int = 64,
    ) -> None:
        matrices = map(_matrix, (student, teacher, class_mean, gradient))
        per_row = map(_address, (labels, distances, statistics, upstream))
        dtype, shape = DTYPES[student.dtype], student.shape
        self._call(self._trilateral_backward, team, dtype, step, *matrices, *per_row, *shape, ignore_index, squared)

    def scale_rows(self, team: Team, gradient: Tensor, factor: Tensor, blocks: int = 4) -> None:
        """In place, over a grid of at most so many blocks."""
        arguments = (_matrix(gradient), _address(factor), factor.dim() > 0, *gradient.shape)
        self._call(self._scale, team, DTYPES[gradient.dtype], blocks, *arguments)

    @staticmethod
    def _call(function, team: Team, *arguments) -> None:
        overruns = function(_Shape(*team), *arguments)
        assert overruns == 0, f"{overruns} rows wrote beyond their shared memory"


def _matrix(tensor: Tensor | None) -> _Matrix:
    if tensor is None:
        return _Matrix(None, 0, 0)
    assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return _Matrix(tensor.data_ptr(), tensor.stride(0), DTYPES[tensor.dtype])


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()
