"""Where "auto" ends at plain PyTorch: said once per reason, an error on request, silent where it was asked for."""

import os
import subprocess
import sys

import torch

from kdkernels.backends import FallbackWarning, automatic

CODE = """
import threading, warnings, torch, kdkernels as kd
from kdkernels.backends import FallbackWarning
warnings.simplefilter("always")
x, t = torch.randn(3, 7), torch.randn(3, 7)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    def calls():
        for _ in range(3):
            torch.func.grad(lambda z: kd.divergence(z, t))(x)
    calls()
    kd.divergence(x, t, backend="reference")
    kd.divergence(x.to("meta"), t.to("meta"))
said = [str(each.message) for each in caught if each.category is FallbackWarning]
assert len(said) == 1 and "torch.func" in said[0], said
native = kd.backends.__globals__["native"]
native._MISSING = "it was not built"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    compiled = torch.compile(lambda z: kd.divergence(z, t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), kd.divergence(x, t))
said = [str(each.message) for each in caught if each.category is FallbackWarning]
assert len(said) == 1 and "native: it was not built" in said[0], said
"""


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stderr


def test_once_per_reason():
    assert python(CODE) == (0, "")


def test_strict():
    call = "import torch, kdkernels as kd; x = torch.ones(3, 7)\n"
    mapped = "torch.func.grad(lambda z: kd.divergence(z, x{}))(x)"
    code, error = python(call + mapped.format(""), KDKERNELS_STRICT="1")
    assert code and "RuntimeError: kdkernels: backend='auto' ends at plain PyTorch" in error
    assert python(call + mapped.format(", backend='reference'"), KDKERNELS_STRICT="1") == (0, "")
    assert python(call + "kd.divergence(x, x)", KDKERNELS_STRICT="1") == (0, "")
    assert python("import warnings; warnings.simplefilter('ignore')\n" + call + mapped.format(""))[0] == 0


def test_what_auto_picks():
    assert automatic(torch.device("cpu")) == ("native", "")
    assert automatic(torch.device("cpu"), (torch.float64,)) == ("native", "")
    name, reason = automatic(torch.device("xpu"))
    assert name == "reference" and reason.startswith("triton: ")


def test_the_warning_is_a_user_warning():
    assert issubclass(FallbackWarning, UserWarning)
