"""Calls from where libraries seldom look: many threads at once, a child after a fork, a backward from another thread,
from inside hooks, under checkpointing, through copies of what came out.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import F16, F32, F64, logits
from fuzz_calls import legal
from fuzz_check import run
from fuzz_choices import seeded
from torch.utils.checkpoint import checkpoint

import kdkernels as kd

OPS = {
    "divergence": lambda z, t, y, **o: kd.divergence(z, t, kd.JensenShannon(0.3), temperature=2.0, **o),
    "distillation": lambda z, t, y, **o: kd.distillation(z, t, y, temperature=2.0, **o),
    "trilateral": lambda z, t, y, **o: kd.trilateral_distances(z, t, y, **o).sum(),
    "log_softmax": lambda z, t, y, **o: kd.log_softmax(z, temperature=2.0, **o).square().sum(),
}
DTYPES = pytest.mark.parametrize("dtype", [F32, F16], ids=["stored gradient", "walked again"])
EVERY_OP = pytest.mark.parametrize("op", OPS)


@pytest.fixture
def batch():
    def make(dtype):
        labels = torch.arange(37) % 113
        return logits(37, 113, dtype=dtype).requires_grad_(), logits(37, 113, dtype=dtype, seed=1), labels

    return make


def gradient(value, z, **options):
    return torch.autograd.grad(value, z, **options)[0]


def test_eight_threads_at_once():
    """Fuzz calls side by side, each with the instruction set that the process has."""

    def play(first):
        for index in range(first, 240, 8):
            call = legal(seeded(f"threads {index}"))
            call.target = (call.target[0], None)
            run(call)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(play, range(8)))


FORKED = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import torch
    from fuzz_calls import legal
    from fuzz_check import run
    from fuzz_choices import seeded
    for index in range(40):
        run(legal(seeded(index)))
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            try:
                for index in range(40 * child, 40 * child + 40):
                    run(legal(seeded(index)))
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(pid)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_forked_children_after_use():
    command = [sys.executable, "-c", textwrap.dedent(FORKED), str(Path(__file__).parent)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@EVERY_OP
@DTYPES
def test_a_backward_from_another_thread(batch, op, dtype):
    z, t, y = batch(dtype)
    wanted = gradient(OPS[op](z, t, y), z)
    value = OPS[op](z, t, y)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(gradient, value, z).result(), wanted)


@EVERY_OP
@DTYPES
def test_calls_from_inside_hooks(batch, op, dtype):
    """A hook of a backward that runs already makes a loss of its own and its gradient; both are right."""
    z, t, y = batch(dtype)
    wanted, seen = gradient(OPS[op](z, t, y), z), []

    def hook(_):
        inner = z.detach().requires_grad_()
        with torch.enable_grad():
            seen.append(gradient(OPS[op](inner, t, y), inner))

    middle = z * 1.0
    middle.register_hook(hook)
    assert torch.equal(gradient(OPS[op](middle, t, y), z), wanted)
    assert len(seen) == 1
    assert torch.equal(seen[0], wanted)


@EVERY_OP
@DTYPES
def test_what_is_saved_may_go_through_hooks(batch, op, dtype):
    """Offloaded by pickle, as slow as can be: nothing that backward reads may hide from saved-tensor hooks."""
    z, t, y = batch(dtype)
    wanted, packed = gradient(OPS[op](z, t, y), z), []

    def pack(x):
        packed.append(x.shape)
        return pickle.dumps(x.detach())

    with torch.autograd.graph.saved_tensors_hooks(pack, pickle.loads):
        value = OPS[op](z, t, y)
    assert packed
    assert torch.equal(gradient(value, z), wanted)


@EVERY_OP
@DTYPES
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one, in the outer's forward
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_within_checkpoint(batch, op, dtype, reentrant):
    z, t, y = batch(dtype)
    wanted = gradient(OPS[op](z * 1.0, t, y), z)
    once = lambda x: checkpoint(OPS[op], x * 1.0, t, y, use_reentrant=reentrant)  # noqa: E731
    checkpoint(once, z, use_reentrant=reentrant).backward()
    assert torch.equal(z.grad, wanted)


@EVERY_OP
@DTYPES
def test_copies_of_what_came_out(batch, op, dtype):
    """A detached result is copied, pickled, and its graph lives on; a result with a graph says why it cannot be."""
    z, t, y = batch(dtype)
    value = OPS[op](z, t, y)
    for twin in (copy.deepcopy(value.detach()), pickle.loads(pickle.dumps(value.detach()))):
        assert torch.equal(twin, value)
        twin.add_(1.0)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(value)
    assert torch.equal(gradient(value, z), gradient(OPS[op](z, t, y), z))


@EVERY_OP
def test_many_graphs_at_once_and_in_any_order(batch, op):
    z, t, y = batch(F64)
    factors = [1.0, -2.0, 0.0, 1e3]
    values = [factor * OPS[op](z, t, y) for factor in factors]
    wanted = gradient(OPS[op](z, t, y), z)
    for index in (2, 0, 3, 1):
        torch.testing.assert_close(gradient(values[index], z), factors[index] * wanted, rtol=1e-11, atol=1e-13)
