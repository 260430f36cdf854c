"""Which backend a call gets, and that one which was named never gives way to another."""

import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from cases import logits, pair

import kdkernels as kd
from kdkernels import _C

NAMES = ("reference", "native", "triton")


def python(code, **environment):
    """A fresh interpreter, since the environment is read when the package is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KDKERNELS_")}
    return subprocess.run(
        [sys.executable, *code], env=clean | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def seen(monkeypatch):
    """The backends that calls went to, in order."""
    from kdkernels.backends import KERNEL_BACKENDS, reference

    names = []
    for name, module in [*KERNEL_BACKENDS.items(), ("reference", reference)]:
        original = module.divergence

        def recorded(*arguments, _name=name, _original=original, **keywords):
            names.append(_name)
            return _original(*arguments, **keywords)

        monkeypatch.setattr(module, "divergence", recorded)
    return names


def test_backends_says_what_is_there():
    state = kd.backends()
    assert set(state) == set(NAMES)
    assert state["reference"] == "available"
    assert state["native"] == "available", "the extension is not built"
    if torch.cuda.is_available():
        assert state["triton"] == "available"
    else:
        assert "Triton" in state["triton"] or state["triton"] == "available"  # available: TRITON_INTERPRET=1


def test_auto_takes_the_kernels(seen):
    student, teacher = pair(3, 7)
    kd.divergence(student, teacher)
    assert seen == ["native"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_takes_triton_on_a_gpu(seen):
    student, teacher = pair(3, 7, device="cuda")
    kd.divergence(student, teacher)
    assert seen == ["triton"]


def test_the_call_goes_before_the_block(seen):
    student, teacher = pair(3, 7)
    with kd.use_backend("reference"):
        kd.divergence(student, teacher)
        kd.divergence(student, teacher, backend="native")
        with kd.use_backend("native"):
            kd.divergence(student, teacher)
        kd.divergence(student, teacher)
    kd.divergence(student, teacher)
    assert seen == ["reference", "native", "native", "reference", "native"]


def test_the_block_ends_with_an_error(seen):
    with pytest.raises(KeyError), kd.use_backend("reference"):
        raise KeyError
    student, teacher = pair(3, 7)
    kd.divergence(student, teacher)
    assert seen == ["native"]


def test_a_choice_as_a_decorator_and_a_name_that_is_checked_at_once(seen):
    student, teacher = pair(3, 7)

    @kd.use_backend("reference")
    def inside(depth=0):
        kd.divergence(student, teacher)
        return inside(depth - 1) if depth else "done"

    assert inside(1) == "done" and inside.__name__ == "inside"
    kd.divergence(student, teacher)
    again = kd.use_backend("reference")
    with again, again:
        kd.divergence(student, teacher)
    kd.divergence(student, teacher)
    assert seen == ["reference", "reference", "native", "reference", "native"]
    with pytest.raises(ValueError, match="name must be one of"):
        kd.use_backend("torch")


def test_a_block_is_its_thread_s_own(seen):
    student, teacher = pair(3, 7)
    with kd.use_backend("reference"):
        thread = threading.Thread(target=lambda: kd.divergence(student.detach(), teacher))
        thread.start()
        thread.join()
    assert seen == ["native"]


@pytest.mark.parametrize("name", ["cuda", "Native", "", None, 3])
def test_unknown_names_raise(name):
    student, teacher = pair(3, 7)
    wanted = "must be one of 'auto', 'reference', 'native', 'triton', got " + re.escape(repr(name))
    with pytest.raises(ValueError, match="backend " + wanted):
        kd.divergence(student, teacher, backend=name)
    with pytest.raises(ValueError, match="name " + wanted), kd.use_backend(name):
        kd.divergence(student, teacher)


@pytest.mark.parametrize("where_from", ["argument", "block"])
def test_a_named_backend_that_cannot_run_raises(where_from, seen):
    """Triton has nothing for CPU tensors, and says so instead of handing over to another backend."""
    student, teacher = pair(3, 7)
    if kd.backends()["triton"] == "available" and not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=1 is set, so that Triton runs here")
    message = pytest.raises(RuntimeError, match="backend 'triton' was asked for and cannot run: .+")
    if where_from == "argument":
        with message:
            kd.divergence(student, teacher, backend="triton")
    else:
        with message, kd.use_backend("triton"):
            kd.divergence(student, teacher)
    assert seen == []


SPOILED_REFERENCE = """
import torch, kdkernels as kd
from kdkernels.backends import reference
def divergence(*a, **k): raise SystemExit("reference ran")
reference.divergence = divergence
kd.divergence(torch.zeros(1, 2), torch.zeros(1, 2))
"""


def test_backend_of_the_environment():
    code = ["-c", SPOILED_REFERENCE]
    assert python(code).returncode == 0
    assert "reference ran" in python(code, KDKERNELS_BACKEND="reference").stderr
    assert python(code, KDKERNELS_BACKEND="native").returncode == 0
    impossible = python(code, KDKERNELS_BACKEND="triton", TRITON_INTERPRET="0")
    assert "backend 'triton' was asked for and cannot run" in impossible.stderr
    wrong = python(code, KDKERNELS_BACKEND="fastest")
    assert wrong.returncode != 0
    assert "KDKERNELS_BACKEND must be one of" in wrong.stderr


@pytest.mark.parametrize("isa", _C.instruction_sets())
def test_instruction_set_of_the_environment(isa):
    code = ["-c", "import kdkernels, kdkernels._C as c; print(c.instruction_set())"]
    assert python(code, KDKERNELS_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_raises():
    wrong = python(["-c", "import kdkernels"], KDKERNELS_ISA="mmx")
    assert wrong.returncode != 0
    assert "mmx" in wrong.stderr
    before = _C.instruction_set()
    with pytest.raises(ValueError, match="mmx"):
        _C.use_instruction_set("mmx")
    assert _C.instruction_set() == before


def test_instruction_sets_start_with_the_one_in_use():
    """The widest that the CPU has is taken; baseline runs everywhere."""
    code = ["-c", "import kdkernels, kdkernels._C as c; print(c.instruction_set(), *c.instruction_sets())"]
    used, first, *others = python(code).stdout.split()
    assert used == first
    assert "baseline" in (first, *others)


def test_instruction_sets_agree():
    student, teacher = logits(5, 1271), logits(5, 1271, seed=1)
    usual, values = _C.instruction_set(), []
    try:
        for isa in _C.instruction_sets():
            _C.use_instruction_set(isa)
            values.append(kd.divergence(student, teacher, reduction="none", backend="native"))
    finally:
        _C.use_instruction_set(usual)
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], rtol=2e-6, atol=0.0)


def test_the_report():
    """What to paste into a bug report: versions, devices, instruction set, every backend with its state."""
    done = python(["-m", "kdkernels"])
    assert done.returncode == 0, done.stderr
    for part in (kd.__version__, torch.__version__, _C.instruction_set(), *NAMES, sys.version.split()[0]):
        assert part in done.stdout
    for state in kd.backends().values():
        assert state in done.stdout
    assert "auto       cpu: native\n" in done.stdout
    assert "CUDA kernels: " in done.stdout


def test_the_report_says_what_the_environment_chose():
    named = python(["-m", "kdkernels"], KDKERNELS_BACKEND="reference", KDKERNELS_STRICT="1").stdout
    assert "KDKERNELS_BACKEND=reference" in named and "KDKERNELS_STRICT=1" in named
    assert "auto       cpu: reference\n" in named
    impossible = python(["-m", "kdkernels"], KDKERNELS_BACKEND="triton", TRITON_INTERPRET="0")
    assert impossible.returncode == 0, impossible.stderr
    assert "auto       cpu: an error (backend 'triton' was asked for and cannot run: " in impossible.stdout


def test_a_default_device_of_the_user_s_is_not_taken_for_the_student_s():
    student, teacher = torch.randn(4, 50), torch.randn(4, 50)
    expected = kd.divergence(student, teacher)
    with torch.device("meta"):
        found = kd.divergence(student, teacher)
    torch.testing.assert_close(found, expected)
