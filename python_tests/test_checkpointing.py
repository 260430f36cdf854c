"""The ops inside activation checkpoints and under hooks on saved tensors: the gradients that they have outside."""

import pytest
import torch
from cases import BF16, F16, F32, name_of, pair
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import kdkernels as kd

ROWS, VOCAB = 6, 37
DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=name_of)
OPS = {
    "divergence": lambda z, t, y, **how: kd.divergence(z, t, temperature=2.0, reduction="sum", **how),
    "divergence of rows": lambda z, t, y, **how: kd.divergence(z, t, reduction="none", **how),
    "divergence in place": lambda z, t, y, **how: kd.divergence(z * 1, t, reduction="sum", inplace=True, **how),
    "distillation": lambda z, t, y, **how: kd.distillation(z, t, y, kd.JensenShannon(), reduction="sum", **how),
    "softmax": lambda z, t, y, **how: kd.softmax(z, **how),
    "log_softmax": lambda z, t, y, **how: kd.log_softmax(z, **how),
    "trilateral_distances": lambda z, t, y, **how: kd.trilateral_distances(z, t, y, **how),
}


@pytest.fixture(params=OPS)
def op(request, kernel):
    def run(student, teacher, labels):
        return OPS[request.param](student, teacher, labels, backend=kernel.backend)

    return run


@pytest.fixture
def given(kernel, dtype):
    student, teacher = pair(ROWS, VOCAB, dtype=dtype, device=kernel.device)
    return student.requires_grad_(), teacher, torch.arange(ROWS, device=kernel.device)


def outside(op, given):
    """Value and gradient, and the upstream gradient that led to it: no two numbers of it are the same."""
    value = op(*given)
    upstream = torch.linspace(0.5, 2.0, value.numel(), device=value.device, dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad(value, given[0], upstream)[0], upstream


@DTYPES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(op, given, dtype, reentrant):
    value, gradient, upstream = outside(op, given)
    got = checkpoint(op, *given, use_reentrant=reentrant)
    got.backward(upstream)
    assert torch.equal(got.detach(), value) and torch.equal(given[0].grad, gradient)


@DTYPES
def test_saved_tensors_that_go_elsewhere(op, given, dtype):
    """As `save_on_cpu` does: backward gets copies, and no tensor is larger than the logits."""
    value, gradient, upstream = outside(op, given)
    seen = []

    def pack(tensor):
        seen.append(tensor.numel())
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        got = op(*given)
    assert torch.equal(torch.autograd.grad(got, given[0], upstream)[0], gradient)
    assert seen and max(seen) <= ROWS * VOCAB
