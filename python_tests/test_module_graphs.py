"""Coefficients inside a criterion that is compiled, exported, transformed, or first used in an evaluation."""

import pytest
import torch
from cases import F16, F32
from module_cases import SHAPES, batch, coefficients, expected

import kdkernels as kd

pytestmark = pytest.mark.usual_memory  # inductor and export plan memory themselves


@SHAPES
def test_compiled_once_whatever_the_coefficients(where, shape):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    criterion = kd.DivergenceLoss(kd.Perturbed(coefficients(shape)), backend=where.backend).to(where.device)
    compiled = torch.compile(criterion, fullgraph=True, backend=count)
    args = batch(kd.DivergenceLoss, where.device)
    for seed in range(4):
        eps = coefficients(shape, seed=seed)
        criterion.load_state_dict({"coefficients": eps})
        wanted = expected(kd.DivergenceLoss, eps, where.device, where.backend)
        torch.testing.assert_close(compiled(*args), wanted)
        criterion.coefficients.copy_(2 * eps)
        wanted = expected(kd.DivergenceLoss, 2 * eps, where.device, where.backend)
        torch.testing.assert_close(compiled(*args), wanted)
        torch.testing.assert_close(criterion(*args), wanted)
    assert len(graphs) == 1
    torch._dynamo.reset()


@SHAPES
def test_exported_with_its_buffers(kernel, shape):
    criterion = kd.DivergenceLoss(kd.Perturbed(coefficients(shape)), backend=kernel.backend).to(kernel.device)
    args = batch(kd.DivergenceLoss, kernel.device)
    program = torch.export.export(criterion, args)
    assert list(program.state_dict) == ["coefficients"]
    module, eps = program.module(), coefficients(shape, seed=6)
    module.load_state_dict({"coefficients": eps})
    wanted = expected(kd.DivergenceLoss, eps, kernel.device, kernel.backend)
    torch.testing.assert_close(module(*args), wanted)


@SHAPES
def test_an_ensemble_under_vmap(shape):
    kind, every = kd.DivergenceLoss, [coefficients(shape, seed=seed) for seed in range(3)]
    criterion, args = kind(kd.Perturbed(every[0])), batch(kind)
    call = lambda eps: torch.func.functional_call(criterion, {"coefficients": eps}, args)  # noqa: E731
    got = torch.func.vmap(call)(torch.stack(every))
    wanted = torch.stack([expected(kind, eps) for eps in every])
    torch.testing.assert_close(got, wanted)
    assert torch.equal(criterion(*batch(kind)), wanted[0])
    with pytest.raises(ValueError, match="coefficients must not require grad"):
        torch.func.grad(call)(every[0])


@SHAPES
def test_what_evaluation_made_serves_training(shape):
    """The first call after a move may be one under inference_mode, whose tensors backward could not read."""
    criterion = kd.DivergenceLoss(kd.Perturbed(coefficients(shape)))
    student, teacher = batch(kd.DivergenceLoss)
    with torch.inference_mode():
        criterion(student, teacher)
    assert not criterion.loss.table(F32).is_inference()
    for dtype in (F32, F16):
        for call in (criterion, torch.compile(criterion, backend="aot_eager", fullgraph=True)):
            leaf, wanted = (student.to(dtype, copy=True).requires_grad_() for _ in range(2))
            call(leaf, teacher).backward()
            kd.divergence(wanted, teacher, kd.Perturbed(coefficients(shape))).backward()
            torch.testing.assert_close(leaf.grad, wanted.grad)
    torch._dynamo.reset()
