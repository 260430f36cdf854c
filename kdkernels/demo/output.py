"""The folder of results: files are replaced whole, and only those that an earlier run has written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

WRITER = "kdkernels.demo"
"""Stands in the first bytes of each file, so that a later run knows it for its own."""


class NotOurs(Exception):
    """A file that would be overwritten is the user's."""


def prepare(folder: Path, names: tuple[str, ...]) -> None:
    """Make the folder; raise before any work is done where something in it must not be overwritten."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotOurs(f"{folder} is not a folder; choose another with --out") from None
    for path in (folder / name for name in names):
        if path.exists() and not (path.is_file() and WRITER.encode() in head(path)):
            raise NotOurs(f"{path} was not written by this demo and would be lost; choose another folder with --out")


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)


def write(path: Path, content: bytes) -> None:
    """Replace the file at once: whoever reads it, or stops the run, never meets half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            # A temporary file is its owner's alone; what is left is as readable as any file that the user makes.
            os.chmod(file.name, 0o666 & ~umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
