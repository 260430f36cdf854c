"""What "auto" takes on a GPU: by size in plain eager mode, by nothing that a graph would keep. No GPU is needed."""

import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import kdkernels.__main__ as main
from kdkernels.backends import SMALL, resolve
from kdkernels.methods.auxiliary import membership

CUDA, F32 = torch.device("cuda"), (torch.float32,)
FEW, MANY = torch.empty(SMALL, device="meta"), torch.empty(SMALL + 1, device="meta")


@pytest.fixture
def obstacles(monkeypatch):
    """By backend, what keeps it from running; at first nothing does."""
    found = {}
    monkeypatch.setattr(sys.modules["kdkernels.backends"], "_obstacle", lambda name, device, dtypes: found.get(name))
    return found


def test_few_logits_take_the_compiled_kernels_and_many_triton_s(obstacles):
    assert resolve("auto", CUDA, F32, FEW) == "native"
    assert resolve("auto", CUDA, F32, MANY) == "triton"
    assert resolve("auto", CUDA, F32) == "triton"
    assert resolve("auto", torch.device("cpu"), F32, FEW) == resolve("auto", torch.device("cpu"), F32, MANY) == "native"
    obstacles["native"] = "not built"
    assert resolve("auto", CUDA, F32, FEW) == "triton"
    obstacles["native"], obstacles["triton"] = None, "not installed"
    assert resolve("auto", CUDA, F32, MANY) == "native"


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_tracer_bakes_no_size(obstacles, mode):
    """A graph is for other sizes too: it gets what many logits get, and no guard on how many there were."""
    taken = []

    def call(x):
        taken.append(resolve("auto", CUDA, F32, x))
        return x + 1

    graph = make_fx(call, tracing_mode=mode)(torch.ones(4, 7))
    assert taken == ["triton"]
    if mode == "symbolic":
        assert not any("83886" in str(guard.expr) for guard in graph.shape_env.guards)


def test_the_report_says_both(obstacles):
    assert main._automatic(CUDA) == f"native up to {SMALL} logits, triton beyond"
    assert main._automatic(torch.device("cpu")) == "native"


def test_the_auxiliary_loss_goes_by_its_similarities(monkeypatch):
    seen = []
    resolved = membership.resolve
    monkeypatch.setattr(membership, "resolve", lambda *given: seen.append(given) or resolved(*given))
    u = torch.randn(3, 5)
    membership.membership_divergence(u, torch.randn(3, 5), 0.1, 1.0, None, False)
    assert seen[0][-1] is u
