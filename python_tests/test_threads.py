"""Threads, processes and thread counts: the same numbers from wherever the call comes."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import DEFAULT_LOSSES, F32, F64, logits, name_of, on, value_and_gradient

import kdkernels as kd


def run(where, loss, rows=37, vocab=1271, dtype=F32):
    student, teacher = (logits(rows, vocab, dtype=dtype, device=where.device, seed=seed) for seed in (0, 1))
    options = {"temperature": 2.0, "reduction": "sum", "backend": where.backend}
    return value_and_gradient(lambda z: kd.divergence(z, teacher, loss, **options), student)


@pytest.fixture
def thread_count():
    """torch.set_num_threads, and back afterwards."""
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


@pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
@pytest.mark.parametrize("shape", [(37, 1271), (2, 40000), (1, 40000)], ids=str)
def test_the_number_of_threads_changes_nothing(kernel, thread_count, loss, shape):
    """A row belongs to one thread, whichever that is: bit for bit the same on one thread and on several."""
    results = []
    for threads in (1, 2, 3):
        thread_count(threads)
        results.append(run(kernel, loss, *shape))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def run_trilateral(where, rows=37, vocab=1271, dtype=F32):
    student, teacher = (logits(rows, vocab, dtype=dtype, device=where.device, seed=seed) for seed in (0, 1))
    labels = torch.arange(rows, device=where.device) % vocab
    table = student.softmax(-1)[:1].expand(vocab, vocab)
    return value_and_gradient(
        lambda z: kd.trilateral_distances(z, teacher, labels, table, backend=where.backend), student
    )


@pytest.mark.parametrize("shape", [(37, 1271), (37, 7), (2, 40000), (1, 40000)], ids=str)
def test_the_number_of_threads_changes_no_distance(kernel, thread_count, shape):
    results = []
    for threads in (1, 2, 3):
        thread_count(threads)
        results.append(run_trilateral(kernel, *shape))
    for got in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got, results[0], strict=True))


def test_the_number_of_threads_changes_no_sum_of_the_reference(thread_count):
    student, teacher = logits(200_000, 3), logits(200_000, 3, seed=1)
    sums = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.append(kd.divergence(student, teacher, reduction="sum", backend="reference").item())
    assert sums[0] == sums[1] == sums[2]


def test_concurrent_distances(where):
    """Several Python threads at once, each with rows of its own: statistics and gradients do not mix."""
    sizes = [5, 37, 64]
    wanted = {rows: run_trilateral(where, rows) for rows in sizes}
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda rows: run_trilateral(where, rows), sizes * 8))
    for rows, result in zip(sizes * 8, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(result, wanted[rows], strict=True))


def test_concurrent_backward_of_one_graph_of_distances(where):
    """Two threads walk the same kept graph: what is saved must not be written by either."""
    student, teacher = (logits(37, 1271, dtype=F64, device=where.device, seed=seed) for seed in (0, 1))
    student.requires_grad_()
    labels = torch.arange(37, device=where.device)
    total = kd.trilateral_distances(student, teacher, labels, backend=where.backend).sum()
    (wanted,) = torch.autograd.grad(total, student, retain_graph=True)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: torch.autograd.grad(total, student, retain_graph=True)[0], range(16)))
    assert all(torch.equal(gradient, wanted) for gradient in got)


def test_repeated_calls_give_the_same_bits(where):
    first = run(where, kd.JensenShannon())
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(run(where, kd.JensenShannon()), first, strict=True))


def test_concurrent_calls(where):
    """Several Python threads at once, each with a loss of its own: the interpreter lock is not what protects them."""
    losses = [on(where.device, loss) for loss in DEFAULT_LOSSES]
    wanted = {loss: run(where, loss) for loss in losses}
    calls = [loss for _ in range(8) for loss in losses]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda loss: run(where, loss), calls))
    for loss, result in zip(calls, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(result, wanted[loss], strict=True))


def test_concurrent_backward_of_one_graph(where):
    """Two threads walk the same kept graph: what is saved must not be written by either."""
    student, teacher = (logits(37, 1271, dtype=F64, device=where.device, seed=seed) for seed in (0, 1))
    student.requires_grad_()
    loss = 3.0 * kd.divergence(student, teacher, backend=where.backend)
    (wanted,) = torch.autograd.grad(loss, student, retain_graph=True)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: torch.autograd.grad(loss, student, retain_graph=True)[0], range(16)))
    assert all(torch.equal(gradient, wanted) for gradient in got)


FORK = textwrap.dedent("""
    import os, sys, torch, kdkernels as kd
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 5000), torch.randn(64, 5000)
    wanted = kd.divergence(student, teacher, backend="native")   # the parent's thread pool exists from here on
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        same = torch.equal(kd.divergence(student, teacher, backend="native"), wanted)
        os._exit(0 if same else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_with_one_thread():
    """What a data loader's worker is. GNU OpenMP's pool does not survive a fork, so one thread must not touch it."""
    try:
        done = subprocess.run([sys.executable, "-c", FORK], timeout=60, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail("the forked child hangs")
    assert done.returncode == 0, done.stderr
