"""torch.export, make_fx, forward mode and vmap: what else walks through a call, and records or transforms it."""

import pytest
import torch
from cases import F64, logits, on, per_class, value_and_gradient
from conftest import DEVICES

import kdkernels as kd

pytestmark = pytest.mark.usual_memory  # the graph is to record what users see, without the fills of a torch.empty

PER_CLASS = {device: on(device, per_class(50)) for device in DEVICES}


def test_export_keeps_the_batch_size_free(kernel):
    class All(torch.nn.Module):
        def forward(self, student, teacher, labels):
            soft = kd.divergence(student, teacher, backend=kernel.backend)
            d = kd.trilateral_distances(student, teacher, labels, backend=kernel.backend)
            return soft + d.mean(-1) + kd.distillation(student, teacher, labels, backend=kernel.backend)

    def batch(rows):
        labels = torch.arange(rows, device=kernel.device)
        return *(torch.randn(rows, 50, device=kernel.device) for _ in range(2)), labels

    free = {0: torch.export.Dim("rows")}
    program = torch.export.export(All(), batch(4), dynamic_shapes=(free, free, free)).module()
    other = batch(7)
    torch.testing.assert_close(program(*other), All()(*other))


def test_make_fx_records_the_operator_and_not_its_result(kernel):
    from torch.fx.experimental.proxy_tensor import make_fx

    pairs = [[torch.randn(4, 50, device=kernel.device) for _ in range(2)] for _ in range(2)]
    for call in (
        lambda z, t: kd.divergence(z, t, backend=kernel.backend),
        lambda z, t: kd.divergence(z, t, PER_CLASS[kernel.device], backend=kernel.backend),
    ):
        torch.testing.assert_close(make_fx(call)(*pairs[0])(*pairs[1]), call(*pairs[1]))


CALLS = {
    "divergence": lambda z, t, y, **options: kd.divergence(z, t, **options),
    "perturbed": lambda z, t, y, **options: kd.divergence(z, t, PER_CLASS[z.device.type], **options),
    "distillation": lambda z, t, y, **options: kd.distillation(z, t, y, **options),
    "trilateral": lambda z, t, y, **options: kd.trilateral_distances(z, t, y, **options).square().sum(-1).mean(),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def batch(device):
    """Student, teacher, a direction (4, 50), and labels (4,)."""
    return *(logits(4, 50, dtype=F64, device=device, seed=seed) for seed in range(3)), torch.arange(4, device=device)


@EVERY_CALL
def test_forward_mode_gets_plain_pytorch(kernel, call):
    from torch.autograd import forward_ad

    student, teacher, direction, labels = batch(kernel.device)
    _, gradient = value_and_gradient(lambda z: call(z, teacher, labels), student)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(student, direction), teacher, labels)).tangent
        torch.testing.assert_close(tangent, (gradient * direction).sum())
        with pytest.raises(RuntimeError, match="forward-mode"):
            call(forward_ad.make_dual(student, direction), teacher, labels, backend=kernel.backend)


@EVERY_CALL
def test_vmap_gets_plain_pytorch(kernel, call):
    student, teacher, _, labels = batch(kernel.device)
    each = torch.func.vmap(call)(student, teacher, labels)
    torch.testing.assert_close(each.mean(), call(student, teacher, labels))
