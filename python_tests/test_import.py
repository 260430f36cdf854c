"""What `import kdkernels` brings in besides torch, which is nothing, and what comes when it is first asked for."""

import os
import subprocess
import sys

import pytest

METHODS = ("auxiliary", "complexity", "online", "pt", "tgeo")


def printed(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


NEW = "import sys, torch; before = set(sys.modules); import kdkernels\n{}\nprint(*set(sys.modules) - before)"
CALLS = """
x, y = torch.randn(3, 5, requires_grad=True), torch.arange(3)
kdkernels.distillation(x, x.detach(), y, kdkernels.JensenShannon()).backward()
kdkernels.softmax(x).sum().backward()
kdkernels.trilateral_distances(x, x.detach(), y).sum().backward()
"""
HEAVY = {"triton", "sympy", "numpy", "torch._dynamo", "torch._inductor", "torch.onnx", "kdkernels.methods"}


def test_the_import_brings_in_nothing_but_itself():
    """Not Triton, which takes three times as long as all of it, and nothing that torch had not imported."""
    names = printed(NEW.format(""))
    assert {name for name in names if name.partition(".")[0] != "kdkernels"} == set()
    assert not HEAVY & set(names)


def test_nor_do_calls_on_the_cpu():
    assert not HEAVY & set(printed(NEW.format(CALLS)))


@pytest.mark.parametrize("name", METHODS)
def test_methods_come_with_the_package(name):
    code = f"import kdkernels as kd; print(kd.methods.{name}.__name__, *kd.methods.{name}.__all__)"
    module, *names = printed(code)
    assert module == f"kdkernels.methods.{name}"
    assert names


def test_methods_are_listed_before_they_are_imported():
    code = "import sys, kdkernels as kd; print(*dir(kd), *('kdkernels.methods' in sys.modules, *dir(kd.methods)))"
    listed = printed(code)
    assert {"methods", "divergence", "False", *METHODS} <= set(listed)


@pytest.mark.parametrize("place", ["kd", "kd.methods"])
def test_what_is_not_there_is_an_attribute_error(place):
    code = f"""
import kdkernels as kd
try:
    {place}.nothing
except AttributeError as error:
    print(error)
assert not hasattr({place}, "__wrapped__")
"""
    assert " ".join(printed(code)) == f"module '{place.replace('kd', 'kdkernels', 1)}' has no attribute 'nothing'"


INTERPRETED = """
import os, kdkernels as kd, torch
os.environ["TRITON_INTERPRET"] = "1"  # after the import, before Triton is first used
student, teacher = torch.randn(2, 3, 7)
loss = kd.JensenShannon(0.3)  # its term calls a function of another module
found = kd.divergence(student, teacher, loss, backend="triton")
torch.testing.assert_close(found, kd.divergence(student, teacher, loss))
print(kd.backends()["triton"])
"""


def test_the_interpreter_is_chosen_when_triton_is_first_used():
    pytest.importorskip("triton", reason="the Triton backend is an extra")
    assert printed(INTERPRETED, TRITON_INTERPRET="0") == ["available"]
