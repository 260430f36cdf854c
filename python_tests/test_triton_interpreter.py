"""The Triton kernels on the CPU: Triton's interpreter must be chosen before Triton is imported, so in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the Triton backend is an extra")
numpy = pytest.importorskip("numpy", reason="Triton's interpreter computes with it")
if triton.__version__ < "3.7" and tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
    pytest.skip("the interpreter of Triton 3.6 needs numpy < 2.4", allow_module_level=True)
HERE = Path(__file__).parent


def test_kernels_in_the_interpreter():
    """Every case of the files _triton_interpreter_*.py; their own report is the message when one fails."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])
    )
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--noconftest"]
    command += ["-p", "_triton_interpreter", *map(str, sorted(HERE.glob("_triton_interpreter_*.py")))]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True)
    summary = worker.stdout.strip().splitlines()[-1:] or [""]
    assert worker.returncode == 0 and "passed" in summary[0], worker.stdout[-20000:] + worker.stderr[-4000:]
