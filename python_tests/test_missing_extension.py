"""Without the compiled extension: the reason names the real cause and what helps, for every way to get there."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

import kdkernels as kd
from kdkernels import _C
from kdkernels.backends.extension import INTERFACE

PACKAGE = Path(kd.__file__).parent


def copy(folder, *, extension):
    """The package in a folder, with its extension or without."""
    without = () if extension else ("_C*",)
    return shutil.copytree(PACKAGE, folder / "kdkernels", ignore=shutil.ignore_patterns("__pycache__", *without))


def checkout(folder):
    """What `git clone` leaves, as far as it matters: the package beside setup.py and csrc/."""
    (folder / "csrc").mkdir(parents=True)
    (folder / "setup.py").touch()
    copy(folder, extension=False)
    return folder


def python(where, code, *path):
    """A new process in that folder, which comes first on its path; then these, then torch's (-S: without its hooks)."""
    path = map(str, (*path, Path(torch.__file__).parents[1]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": ""}
    command = [sys.executable, "-S", *code.split(" ", 1)]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120)


REASON = "-c import kdkernels as kd; print(kd.backends()['native'])"


def reason(where, *path):
    done = python(where, REASON, *path)
    assert done.returncode == 0, done.stderr
    assert "circular" not in done.stdout
    return done.stdout.strip()


def test_a_checkout_that_hides_what_is_installed(tmp_path):
    clone, site = checkout(tmp_path / "clone"), tmp_path / "site"
    installed = copy(site, extension=True)
    assert reason(tmp_path, site) == "available"
    said = reason(clone, site)
    assert said.startswith(f"the checkout {clone}, which Python imports, has no compiled extension, and it hides")
    assert f"installed at {installed}: start Python in another folder, or `pip install -e {clone}`" in said
    assert "build_ext --inplace" in said


def test_a_checkout_alone(tmp_path):
    clone = checkout(tmp_path / "clone")
    said = reason(clone)
    assert f"the checkout {clone}, which Python imports, has no compiled extension: `pip install -e {clone}`" in said


def test_a_checkout_that_was_built_for_another_python(tmp_path):
    clone = checkout(tmp_path / "clone")
    other = "_C.cpython-32-x86_64-linux-gnu.so"
    (clone / "kdkernels" / other).touch()
    assert f"(there is {other})" in reason(clone)


def test_an_installation_without_it(tmp_path):
    installed = copy(tmp_path, extension=False)
    said = reason(tmp_path)
    assert f"the compiled extension is not in {installed}" in said
    assert "KDKERNELS_NATIVE=0" in said


def test_one_that_cannot_be_loaded(tmp_path):
    installed = copy(tmp_path, extension=False)
    broken = installed / f"_C{EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"no library")
    said = reason(tmp_path)
    assert said.startswith(f"the compiled extension {broken} cannot be loaded: ")
    assert "invalid ELF header" in said or "too short" in said


def test_asked_for_by_name_it_raises_with_the_reason(tmp_path):
    clone = checkout(tmp_path / "clone")
    done = python(clone, "-c import torch, kdkernels as kd; kd.softmax(torch.zeros(1, 2), backend='native')")
    assert f"RuntimeError: backend 'native' was asked for and cannot run: the checkout {clone}" in done.stderr


def test_the_report_has_it_too(tmp_path):
    clone = checkout(tmp_path / "clone")
    done = python(clone, "-m kdkernels")
    assert done.returncode == 0, done.stderr
    assert f"the checkout {clone}" in done.stdout


def test_in_the_folder_above_a_checkout_of_this_name(tmp_path):
    """Python would make an empty package of the folder; a kdkernels that is installed is imported all the same."""
    checkout(tmp_path / "kdkernels")
    copy(tmp_path / "site", extension=True)
    assert _C.instruction_set() in python(tmp_path, "-m kdkernels", tmp_path / "site").stdout


def test_an_extension_of_other_sources_is_not_called(tmp_path):
    """After `git pull` the old one is still there, and would read its arguments in other places."""
    assert _C.interface == INTERFACE
    clone = checkout(tmp_path / "clone")
    shutil.copy(_C.__file__, clone / "kdkernels")
    native = clone / "kdkernels" / "backends" / "extension.py"
    native.write_text(native.read_text().replace(f"INTERFACE = {INTERFACE}", "INTERFACE = -1"))
    assert "was built from other sources than this package's: build it again" in reason(clone)
