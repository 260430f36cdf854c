"""What the cases of the Triton interpreter share: the two forms, a float64 oracle, tolerances. A pytest plugin.

Loaded by test_triton_interpreter.py in a process that sets TRITON_INTERPRET=1 before Triton is imported. Most cases run
in both forms: resident as the launch configs say, and streaming in tiles of 128 or 256 columns, so that short rows take
several tiles, a ragged last one and a walk in either direction. The interpreter spends its time per operation on a
tile, not per element: rows are few, tiles no smaller than they must be.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from triton.runtime import interpreter

from kdkernels.backends import triton as backend
from kdkernels.backends.calls import Divergence
from kdkernels.kernels import config
from kdkernels.losses import LOSSES, Perturbed

warnings.filterwarnings("ignore", category=RuntimeWarning)  # NumPy's remarks on inf - inf, which is what is tested
INF, NAN = math.inf, math.nan
VOCABS = (1, 2, 7, 100, 1000, 1271)
OTHER_PARAMETER = {"jensen_shannon": {"beta": 0.1}, "skew_kl": {"alpha": 0.7}, "skew_reverse_kl": {"alpha": 0.7}}
EXAMPLES = [loss() for loss in LOSSES.values() if loss is not Perturbed]
EXAMPLES += [LOSSES[name](**fields) for name, fields in OTHER_PARAMETER.items()]
EXAMPLES.append(Perturbed(torch.tensor([0.5, -0.2, 0.3, 0.1, -0.1])))
EPSILON = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}

_patched: set[str] = set()


def _call_patched_once(self, *arguments, **keywords):
    """A call between device functions. Triton's own patches triton.language again each time, three quarters of the time
    of these cases; a launch has done so already, but for what Triton's own library sees, which stays patched."""
    module = self.fn.__module__
    if module.startswith("triton.") and module not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(module)
    return self.rewrite()(*arguments, **keywords)


interpreter.InterpretedFunction.__call__ = _call_patched_once


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Every torch.empty is full of NaN, so that an output which a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(params=("resident", "streaming"))
def form(request, monkeypatch):
    if request.param == "streaming":
        table = (config.Streaming(config.UNBOUNDED, (128, 128), 4, 64, "small tiles"),)
        tables = ("DIVERGENCE", "DIVERGENCE_WITH_MORE", "DIVERGENCE_PER_CLASS")
        for name in (*tables, "SOFTMAX", "SOFTMAX_BACKWARD", "TRILATERAL"):
            monkeypatch.setattr(config, name, table)
        monkeypatch.setattr(config, "TRILATERAL_BACKWARD", config.Tiled(128, 2, 64, "small tiles, several programs"))
    return request.param


@pytest.fixture(params=EXAMPLES, ids=repr)
def loss(request):
    return request.param


def rows_of(rows, vocab, dtype=torch.float32, scale=2.0, seed=0):
    return (scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed + vocab))).to(dtype)


def empty_like(student, stride=None):
    return torch.full((student.shape[0], stride or student.shape[1]), NAN, dtype=student.dtype)[:, : student.shape[1]]


def run(loss, student, teacher, gradient, labels=None, soft=None, hard=None, temperature=1.0, scales=(1.0, 1.0)):
    numbers = (loss.parameter(), temperature, *scales)
    call = Divergence(labels, soft, hard, loss.table(torch.float32), loss.name, *numbers)
    return backend.divergence(student, teacher, gradient, call)


def oracle(loss, student, teacher, labels=None, soft=None, hard=None, temperature=1.0, scales=(1.0, 1.0)):
    """float64 values (rows,) and gradient from the loss's definition, for finite rows."""
    z = student.double().requires_grad_()
    log_q, log_p = (z / temperature).log_softmax(-1), (teacher.double() / temperature).log_softmax(-1)
    ones = torch.ones(len(z), dtype=torch.float64)
    values = scales[0] * (ones if soft is None else soft.double()) * loss.definition(log_q, log_p)
    if labels is not None:
        weight = scales[1] * (ones if hard is None else hard.double())
        values = values + weight * F.cross_entropy(z, labels, reduction="none")
    values.sum().backward()
    return values.detach(), z.grad


def assert_near(values, gradient, expected, peak=1.0):
    """Float32 arithmetic: a few units roundoff of log-probabilities near 10, times `peak` where T makes them larger."""
    assert not values.isnan().any() and values.dtype == torch.float32
    unit = 2e-6 * max(1.0, peak)
    torch.testing.assert_close(values.double(), expected[0], rtol=unit, atol=unit)
    if gradient is not None:
        rounding = EPSILON[gradient.dtype]
        torch.testing.assert_close(gradient.double(), expected[1], rtol=rounding + unit, atol=unit + rounding / 256)
