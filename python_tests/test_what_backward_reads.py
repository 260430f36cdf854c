"""What backward reads: copied where autograd cannot watch it, and released with the graph."""

import gc
import weakref

import pytest
import torch
from cases import BF16, F16, F32, F64, logits, name_of

import kdkernels as kd

LABELS = torch.arange(9)
CALLS = {
    "divergence": lambda x, t, where: kd.divergence(x, t, temperature=2.0, backend=where),
    "distillation": lambda x, t, where: kd.distillation(
        x, t, LABELS.to(x.device), weight=LABELS.to(x.device) / 9, backend=where
    ),
    "trilateral": lambda x, t, where: kd.trilateral_distances(x, t, LABELS.to(x.device), backend=where).sum(),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)


def rewritten_before_backward(call, dtype, device):
    """(gradient, gradient where the teacher's buffer, made in inference mode, is overwritten before backward)."""
    x = logits(9, 50, dtype=dtype, device=device).requires_grad_()
    teacher = logits(9, 50, seed=1, device=device)
    (expected,) = torch.autograd.grad(call(x, teacher), x)
    with torch.inference_mode():
        buffer = teacher.clone()
    value = call(x, buffer)
    with torch.inference_mode():
        buffer.normal_()
    return torch.autograd.grad(value, x)[0], expected


@EVERY_CALL
@EVERY_DTYPE
def test_an_inference_teacher_that_is_overwritten(call, dtype, kernel):
    found, expected = rewritten_before_backward(lambda x, t: call(x, t, kernel.backend), dtype, kernel.device)
    assert torch.equal(found, expected)


@pytest.mark.usual_memory
@EVERY_CALL
@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_an_inference_teacher_under_a_compiler(call, dtype, compiler, kernel):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t: call(x, t, kernel.backend), fullgraph=True, backend=compiler)
    found, expected = rewritten_before_backward(compiled, dtype, kernel.device)
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


@EVERY_CALL
@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
def test_a_teacher_that_autograd_watches_is_not_copied_and_may_not_change(call, dtype, kernel):
    x = logits(9, 50, dtype=dtype, device=kernel.device).requires_grad_()
    teacher = logits(9, 50, seed=1, device=kernel.device)
    value = call(x, teacher, kernel.backend)
    held = [saved for saved in saved_tensors(value) if saved.data_ptr() == teacher.data_ptr()]
    teacher.normal_()
    if held:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def saved_tensors(value):
    found, nodes = [], [value.grad_fn]
    while nodes:
        node = nodes.pop()
        found += [x for x in getattr(node, "saved_tensors", ()) if isinstance(x, torch.Tensor)]
        nodes += [below for below, _ in node.next_functions if below is not None]
    return found


@EVERY_CALL
@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
def test_kept_losses_hold_nothing(call, dtype, kernel):
    """Of 40 losses that were walked back and are kept, no tensor of their calls is alive: neither side, nor a copy."""
    leaf = logits(9, 500, dtype=dtype, device=kernel.device).requires_grad_()
    kept, seen = [], []
    for seed in range(40):
        student, teacher = leaf * 1, logits(9, 500, dtype=dtype, seed=seed, device=kernel.device)
        value = call(student, teacher, kernel.backend)
        seen += map(weakref.ref, (student, teacher, *saved_tensors(value)))
        value.backward()
        kept.append(value)
        del student, teacher
    gc.collect()
    alive = [each() for each in seen if each() is not None and each() is not LABELS]
    assert sum(each.untyped_storage().nbytes() for each in alive) == 0


@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
def test_kept_losses_hold_no_buffer_that_they_were_given(dtype, kernel):
    leaf = logits(9, 500, dtype=dtype, device=kernel.device).requires_grad_()
    seen, kept = [], []
    for seed in range(40):
        student = leaf * 1
        seen.append(weakref.ref(student))
        teacher = logits(9, 500, seed=seed, device=kernel.device)
        kept.append(kd.divergence(student, teacher, inplace=True, backend=kernel.backend))
        kept[-1].backward()
        del student
    gc.collect()
    assert [each() for each in seen if each() is not None] == []
