"""Examples and snippets run as a user runs them: in a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kdkernels as kd

ROOT = Path(__file__).parents[1]


def python(folder: Path, *arguments: str) -> str:
    """What a python process in an empty folder prints; it finds this package and these tests, and no network."""
    paths = (str(Path(kd.__file__).parents[1]), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(folder: Path, name: str, *arguments: str) -> str:
    printed = python(folder, str(ROOT / "examples" / name), *arguments)
    assert not list(folder.iterdir()), "it left files behind"
    return printed
