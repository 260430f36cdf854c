"""What only a GPU can show: CUDA graphs, launches near the limits of shared memory, addresses beyond 2^31 elements."""

from __future__ import annotations

import pytest
import torch

import kdkernels as kd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BACKENDS = [name for name in ("native", "triton") if kd.backends()[name] == "available"]


def logits(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def step(student, teacher, backend):
    value = kd.divergence(student, teacher, kd.JensenShannon(), temperature=2.0, backend=backend)
    return value, torch.autograd.grad(value, student)[0]


# Lanes; a block beyond 48 KiB less its own; many rows streamed by Triton; few rows, split by Triton; a cluster of 16.
@pytest.mark.parametrize("shape", [(5, 7), (5, 6000), (150, 9001), (3, 32000), (1, 128256)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_captured_and_eager_agree_on_a_gpu(backend, shape):
    student, teacher = logits(*shape).requires_grad_(), logits(*shape, seed=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(student, teacher, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(student, teacher, backend)
    with torch.no_grad():
        student.copy_(logits(*shape, seed=2))
    graph.replay()
    for replayed, eager in zip(captured, step(student, teacher, backend), strict=True):
        assert torch.equal(replayed, eager)


# One of each band in which 48 KiB of staged rows and a block's own memory meet.
@pytest.mark.parametrize("vocab", (5800, 11800, 12000, 23000, 24000, 47000, 95000, 180000))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_length_can_be_launched_on_a_gpu(backend, dtype, vocab):
    student, teacher = (logits(3, vocab, dtype=dtype, seed=seed) for seed in (0, 1))
    got, want = (step(student.detach().requires_grad_(), teacher, name) for name in (backend, "reference"))
    torch.testing.assert_close(got[0], want[0], rtol=2e-5, atol=0)
    bound = 1e-4 if dtype == torch.float32 else 1e-2
    assert torch.dist(got[1].float(), want[1].float()) <= bound * want[1].float().norm()
    softmaxes = (kd.softmax(student, backend=name).float() for name in (backend, "reference"))
    torch.testing.assert_close(*softmaxes, rtol=bound, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_two_to_the_31_elements_on_a_gpu(backend):
    rows, vocab = 16900, 128256
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * vocab:
        pytest.skip("needs five tensors of 4.3 GB")
    student, teacher = (torch.randn(rows, vocab, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    values = kd.divergence(student, teacher, reduction="none", backend=backend)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    last = student[-2:].detach().requires_grad_()
    expected = kd.divergence(last, teacher[-2:], reduction="none", backend="reference")
    torch.testing.assert_close(values[-2:], expected, rtol=2e-5, atol=0)
    (wanted,) = torch.autograd.grad(expected.sum(), last)
    assert torch.dist(gradient[-2:].float(), wanted.float()) <= 1e-2 * wanted.float().norm()
