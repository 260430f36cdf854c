"""Several upstream gradients at once, as vmap makes them: what one after the other gives."""

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of

import kdkernels as kd

LABELS = torch.tensor([0, -100, 10, 3])
TEACHER = logits(4, 11, seed=1)
CALLS = {
    "rows": lambda z, where: kd.divergence(z, TEACHER, reduction="none", backend=where),
    "scalar": lambda z, where: kd.divergence(z, TEACHER, temperature=2.0, backend=where),
    "distillation": lambda z, where: kd.distillation(z, TEACHER, LABELS, reduction="none", backend=where),
    "softmax": lambda z, where: kd.softmax(z, temperature=2.0, backend=where),
    "log_softmax": lambda z, where: kd.log_softmax(z, backend=where),
    "trilateral": lambda z, where: kd.trilateral_distances(z, TEACHER, LABELS.clamp(min=0), backend=where),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
ROUNDING = {F32: 1e-6, BF16: 2**-7, F16: 2**-10, F64: 1e-12}
ON_CPUS = ("native", "reference")


@EVERY_CALL
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)
@pytest.mark.parametrize("backend", ON_CPUS)
def test_is_grads_batched(call, dtype, backend):
    z = logits(4, 11, dtype=dtype).requires_grad_()
    value = call(z, backend)
    upstream = logits(3, *value.shape, dtype=value.dtype, seed=2)
    one_by_one = torch.stack([torch.autograd.grad(value, z, u, retain_graph=True)[0] for u in upstream])
    (batched,) = torch.autograd.grad(value, z, upstream, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, one_by_one, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    by_vmap = torch.func.vmap(lambda u: torch.autograd.grad(value, z, u, retain_graph=True)[0])(upstream)
    torch.testing.assert_close(by_vmap, one_by_one, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@EVERY_CALL
@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
def test_vectorised_jacobian(call, dtype):
    z = logits(4, 11, dtype=dtype)
    jacobians = [torch.autograd.functional.jacobian(lambda x: call(x, "native"), z, vectorize=v) for v in (True, False)]
    torch.testing.assert_close(*jacobians, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@EVERY_CALL
def test_gradcheck_of_a_batch(call):
    z = logits(4, 11, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: call(x, "native"), (z,), check_batched_grad=True)
