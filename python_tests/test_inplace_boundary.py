"""Where inplace=True is refused before anything is written, and where it is ignored: nothing is there to take."""

import pytest
import torch
from cases import F16, F32, logits, name_of

import kdkernels as kd

EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
LEAVES = {
    "a view": lambda x: x.view(6, 11),
    "columns": lambda x: x.view(6, 11)[:, :9],
    "one of a stack": lambda x: x.view(2, 3, 11)[0],
}


@EVERY_DTYPE
@pytest.mark.parametrize("make", LEAVES.values(), ids=LEAVES)
def test_a_leaf_that_is_a_view_of_a_plain_tensor(make, dtype):
    leaf = make(logits(66, dtype=dtype)).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(ValueError, match="got a leaf that requires grad"):
        kd.divergence(leaf, before.clone(), inplace=True)
    assert torch.equal(leaf.detach(), before)


@EVERY_DTYPE
def test_a_gradient_that_somebody_retains(dtype):
    z = logits(6, 11, dtype=dtype).requires_grad_() * 1
    z.retain_grad()
    before = z.detach().clone()
    with pytest.raises(ValueError, match="retain_grad"):
        kd.divergence(z, before.clone(), inplace=True)
    assert torch.equal(z.detach(), before)


def test_meta_tensors_share_no_memory():
    z, labels = torch.randn(6, 11, device="meta", requires_grad=True) * 1, torch.zeros(6, device="meta").long()
    assert kd.distillation(z, torch.randn(6, 11, device="meta"), labels, inplace=True).is_meta


def test_transforms_and_fake_tensors_get_a_gradient_of_their_own():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, t = logits(6, 11), logits(6, 11, seed=1)
    found = torch.func.grad(lambda z: kd.divergence(z * 1, t, inplace=True, backend="reference"))(x)
    (expected,) = torch.autograd.grad(kd.divergence(x.requires_grad_(), t), x)
    torch.testing.assert_close(found, expected)
    with FakeTensorMode():
        z = torch.randn(6, 11, requires_grad=True) * 1
        kd.divergence(z, torch.randn(6, 11), inplace=True).backward()


def test_compiled_autograd_takes_the_buffer_as_it_is():
    from torch._dynamo import compiled_autograd

    x, t = logits(6, 11).requires_grad_(), logits(6, 11, seed=1)
    (expected,) = torch.autograd.grad(kd.divergence(x * 1, t), x)
    value = kd.divergence(x * 1, t, inplace=True)
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        value.backward()
    torch.testing.assert_close(x.grad, expected)
    torch._dynamo.reset()
