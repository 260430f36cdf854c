"""setup.py: a compiler that is missing or too old is one sentence, and KDKERNELS_NATIVE=0 needs none."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdkernels as kd

ROOT = Path(kd.__file__).parents[1]
pytest.importorskip("setuptools", minversion="77", reason="it is what builds")
if not (ROOT / "setup.py").is_file():
    pytest.skip("an installed package without its setup.py", allow_module_level=True)


@pytest.fixture
def build(tmp_path):
    """Runs setup.py in a copy of the sources, with no compiler on the path but what the environment names."""
    for name in ("csrc", "kdkernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()

    def run(*arguments, **environment):
        clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHONPATH")}
        clean |= {"PATH": str(tmp_path / "bin"), "KDKERNELS_CUDA": "0"} | environment
        command = [sys.executable, "setup.py", "--quiet", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)

    return run


def sentences(done):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if "Warning" not in line]


@pytest.mark.parametrize("command", ["build", "build_ext", "bdist_wheel"])
def test_without_a_compiler(build, command):
    (said,) = sentences(build(command))
    assert said.startswith(
        "kdkernels is compiled from C++, and neither g++ nor clang++ is on the PATH. Install one (apt"
    )
    assert "KDKERNELS_NATIVE=0" in said


def test_a_compiler_that_was_named_and_is_not_there(build):
    (said,) = sentences(build("build_ext", CXX="nonesuch -v"))
    assert "CXX=nonesuch -v is not on the PATH" in said


def test_a_compiler_that_is_too_old(build, tmp_path):
    old = tmp_path / "bin" / "g++"
    old.write_text("#!/bin/sh\necho 'cc1plus: error: unrecognized command line option -std=c++17' >&2\nexit 1\n")
    old.chmod(0o755)
    first, remedy = sentences(build("build_ext"))
    assert "needs a compiler with C++17" in first
    assert first.endswith("g++ says: cc1plus: error: unrecognized command line option -std=c++17")
    assert remedy.startswith("Install one")


def test_without_the_extension_no_compiler_is_needed(build, tmp_path):
    done = build("bdist_wheel", "--dist-dir", "out", KDKERNELS_NATIVE="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kdkernels/methods/pt/search.py" in names
    assert not [name for name in names if name.endswith(".so") or not name.startswith("kdkernels")]


def test_another_wish_is_an_error(build):
    assert sentences(build("bdist_wheel", KDKERNELS_NATIVE="no"))[-1] == (
        "KDKERNELS_NATIVE must be 0, 1 or unset, got 'no'"
    )
