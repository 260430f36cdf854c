"""One checkpoint: a state_dict in the safetensors format, put in its place whole, and read tensor by tensor."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from . import states

FORMAT = "kdkernels.trajectory"
_FLOATING = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
CODES = _FLOATING | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of the dtypes."""


def safetensors() -> Any:
    """The package, or how to get it."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "kdkernels.methods.online needs safetensors for its checkpoints: pip install kdkernels[online]"
        ) from error
    return safetensors


def write(path: Path, tensors: Mapping[str, Tensor], step: int, replace: bool) -> None:
    """The file appears under its name when all of it is on the disk: a kill at any time leaves none or a whole one.

    FileExistsError where the name is taken by then, unless it may be replaced. One tensor at a time is brought to the
    CPU.
    """
    file, temporary = _begin(path)
    try:
        with file:
            _dump(file, tensors, step)
            file.flush()
            os.fsync(file.fileno())
            with opened(temporary, step):  # what cannot be read never gets the name of a checkpoint
                _publish(temporary, path, replace)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync(path.parent)


def _publish(temporary: Path, path: Path, replace: bool) -> None:
    """A link takes no name that another writer has given meanwhile; a rename does."""
    if replace:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, or an error that the rename meets as well
        with _alone(path.parent):
            if path.exists():
                raise FileExistsError(path) from None
            os.replace(temporary, path)
    else:
        os.unlink(temporary)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin(path: Path) -> tuple[BinaryIO, Path]:
    """A temporary file beside the one to be, locked for as long as its writer lives: `sweep` leaves it alone."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "wb")
        with suppress(OSError):  # where a file system has no locks, `sweep` gets none either and removes nothing
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return file, temporary
        file.close()  # another writer took it for a leftover before it was locked


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that no longer live; the kernel has released their locks."""
    for leftover in folder.glob(".step-*.safetensors.*.tmp"):
        with suppress(OSError):  # its writer lives, or it is gone already, or another user's
            descriptor = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump(file: BinaryIO, tensors: Mapping[str, Tensor], step: int) -> None:
    """Not by safetensors.torch.save_file: that needs numpy, copies the whole model to the CPU and refuses tied weights.

    The length of the header in 8 bytes, the header in JSON, the tensors: the widest first, so that each lies at a
    multiple of its own size. Tied weights are written once under each name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "step": str(step)}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        tensor = _plain(tensors[name])
        if tensor.numel():
            size = tensor.numel() * tensor.element_size()
            file.write((ctypes.c_ubyte * size).from_address(tensor.data_ptr()))


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and contiguous; the tensor itself where it is."""
    return tensor.detach().resolve_neg().cpu().contiguous()


def _archive(package: Any, path: Path) -> Any:
    """By reads and not through a map of the file, all of which would count as this process's memory once it is read."""
    try:
        return package.safe_open(path, framework="pt", backend="pread")
    except TypeError:  # safetensors < 0.8 has the map only
        return package.safe_open(path, framework="pt")


@contextmanager
def opened(path: Path, step: int) -> Iterator[Any]:
    """The file, once its header, its length and where it comes from are known to be right."""
    package = safetensors()
    try:
        archive = _archive(package, path)
    except FileNotFoundError:
        raise
    except (package.SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a whole safetensors file, got one that cannot be read: {error}") from error
    with archive:
        came, wanted = archive.metadata() or {}, {"format": FORMAT, "step": str(step)}
        if {key: came.get(key) for key in wanted} != wanted:
            raise ValueError(f"{path} must be a checkpoint with the metadata {wanted}, got {came}")
        yield archive


def same(path: Path, tensors: Mapping[str, Tensor], step: int) -> bool:
    """Whether the file holds these very tensors, bit for bit; one that cannot be read holds others."""
    try:
        with opened(path, step) as archive:
            if set(archive.keys()) != set(tensors):
                return False
            return all(_equal(archive, name, tensor) for name, tensor in tensors.items())
    except ValueError:
        return False


def _equal(archive: Any, name: str, tensor: Tensor) -> bool:
    part = archive.get_slice(name)
    if part.get_dtype() != CODES[tensor.dtype] or tuple(part.get_shape()) != tuple(tensor.shape):
        return False
    ours, theirs = (each.reshape(-1).view(torch.uint8) for each in (_plain(tensor), archive.get_tensor(name)))
    return torch.equal(ours, theirs)


def load(path: Path, step: int, targets: Mapping[str, Tensor]) -> None:
    """Copy the file into the targets, one tensor at a time, after every name, shape and dtype has been looked at."""
    with opened(path, step) as archive:
        parts = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118 (it is no mapping)
        shapes = {name: target.shape for name, target in targets.items()}
        states.entries(str(path), shapes, {name: part.get_shape() for name, part in parts.items()})
        codes = {name: CODES.get(target.dtype, str(target.dtype)) for name, target in targets.items()}
        came = {name: part.get_dtype() for name, part in parts.items()}
        states.dtypes(str(path), codes, came, set(_FLOATING.values()))
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(archive.get_tensor(name))
