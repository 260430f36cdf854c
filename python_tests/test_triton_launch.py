"""What a launch of a Triton kernel costs on the host, and that a kernel is launched only with what it was compiled for.

Without a GPU: kernels compile for one that is not here, and a driver in its place records the launches (triton_stub.py,
which also holds each argument to the promises that its kernel was compiled with).
"""

from __future__ import annotations

import collections
import os
import sys
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="the Triton backend is an extra")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 leaves no compiler to test", allow_module_level=True)

from triton_calls import divergence, rows_of, scale_rows, softmax, softmax_backward, varied  # noqa: E402
from triton_stub import stubbed  # noqa: E402

from kdkernels.backends import calls, compiled, launch  # noqa: E402
from kdkernels.backends import triton as backend  # noqa: E402
from kdkernels.losses import LOSSES  # noqa: E402


@pytest.fixture(params=["sm_90"])
def stub(request, monkeypatch):
    monkeypatch.setattr(launch, "processors", lambda tensor: 132)
    with stubbed(request.param) as stub:
        yield stub


class Allocations(TorchDispatchMode):
    """Counts the tensors that a call makes, and everything else that it asks of PyTorch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.made, self.others = [], []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        (self.made if "empty" in str(function) else self.others).append(str(function))
        return function(*arguments, **keywords or {})


# Per call: launches, and calls of functions, Python's and C's, from the backend's function down to Triton's launcher.
COSTS = {
    "divergence, resident": (divergence(64, 1000), 1, 122),
    "divergence, streaming": (divergence(512, 32000, labels=True), 1, 126),
    "divergence, in parts": (divergence(16, 128256), 3, 218),
    "softmax": (softmax(64, 1000), 1, 86),
    "softmax backward": (softmax_backward(64, 1000), 1, 92),
    "scale": (scale_rows(64, 1000), 1, 64),
}
ALLOCATED = {"divergence, resident": 1, "divergence, streaming": 1, "divergence, in parts": 2}


@pytest.mark.parametrize("name", COSTS)
def test_what_a_call_costs(stub, name, monkeypatch):
    call, launches, most = COSTS[name]
    call()
    asked, first = stub.asked, list(stub.launches)
    stub.launches.clear()
    monkeypatch.setattr(triton.JITFunction, "run", None)  # Triton binds, hashes and compares at every call
    with Allocations() as found:
        call()
    assert (len(stub.launches), len(found.made)) == (launches, ALLOCATED.get(name, 0))
    assert not found.others, "an operator is a launch more"
    assert [each.kernel for each in stub.launches] == [each.kernel for each in first]
    assert stub.asked == asked, "the driver was asked which device it has"
    assert steps_of(call) <= most


def steps_of(call):
    steps = collections.Counter()

    def count(frame, event, argument):
        if "stub" in frame.f_code.co_filename:
            return  # the recording of a launch is none of its cost
        steps[event] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return steps["call"] + steps["c_call"]


@pytest.mark.parametrize("stub", ("sm_90", "gfx942"), indirect=True)
def test_a_kernel_gets_only_what_it_was_compiled_for(stub):
    """Twice through all calls: the stub holds every launch to its kernel's promises, and both times to be the same."""
    every = varied()
    for call in every:
        call()
    first = list(stub.launches)
    stub.launches.clear()
    for call in every:
        call()
    assert [(each.kernel, each.grid, each.compiled) for each in stub.launches] == [
        (each.kernel, each.grid, each.compiled) for each in first
    ]


def test_a_launch_is_the_one_that_triton_would_make(stub, monkeypatch):
    """The same kernel, grid and arguments through both; what is allocated within a call has its address aside."""
    logits, output = rows_of(32, 1000), rows_of(32, 1000)
    backend.softmax(logits, output, calls.Softmax(2.0, True))
    backend.softmax(logits, output, calls.Softmax(2.0, True))
    monkeypatch.setattr(compiled, "_compiled", {})
    backend.softmax(logits, output, calls.Softmax(2.0, True))
    assert stub.launches[0] == stub.launches[1] == stub.launches[2]
    assert stub.launches[0].arguments[:2] == [logits.data_ptr(), output.data_ptr()]


def test_a_tensor_whose_memory_is_gone_is_not_launched(stub):
    gone = torch.ones(8)
    gone.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        compiled.bind((gone,), gone)
    assert compiled.bind((torch.empty(0),), gone).values == [0]


def test_numbers_of_64_bits_and_devices_are_kinds_of_their_own(stub):
    """An address space apart: a stride of 2^31 and one of 2^31 - 1 do not share a kernel, nor do two devices."""
    kinds = [compiled.bind((number,), torch.empty(0)).kinds for number in (1, 2, 16, 2**31 - 1, 2**31, 2**31 + 1)]
    assert len(set(map(tuple, kinds))) == 5  # 2 and 2^31 - 1 are one kind
    call = divergence(64, 1000)
    call()
    with stubbed("gfx942"):  # whose compiler trusts that 32-bit offsets reach all of a smaller tensor
        sizes = [torch.empty(size, dtype=torch.uint8, device="meta") for size in (2**31 - 1, 2**31)]
        assert compiled.bind((sizes[0],), sizes[0]).kinds != compiled.bind((sizes[1],), sizes[1]).kinds
    with stubbed() as other:
        call()
        assert other.asked > 0 and len(other.launches) == 1


def test_a_profiler_sees_every_launch(stub, monkeypatch):
    call, seen = softmax(64, 1000), []
    call()
    enter = triton.knobs.runtime.launch_enter_hook
    hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
    enter.add(hook)
    try:
        call()
    finally:
        enter.remove(hook)
    call()
    assert seen == ["softmax_resident"] and len(stub.launches) == 3


def test_an_unknown_triton_launches_by_itself(stub, monkeypatch):
    monkeypatch.setattr(compiled, "KNOWN_TRITON", ())
    taken, run = [], triton.JITFunction.run
    monkeypatch.setattr(triton.JITFunction, "run", lambda *given, **named: (taken.append(1), run(*given, **named))[1])
    call = softmax(64, 256)
    call()
    call()
    assert len(taken) == len(stub.launches) == 2


def test_threads_launch_side_by_side(stub):
    calls = [softmax(rows, vocab) for rows in (1, 2, 16) for vocab in (100, 1000)]
    for call in calls:
        call()
    stub.launches.clear()
    workers = [threading.Thread(target=lambda: [call() for call in calls]) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert collections.Counter(each.kernel for each in stub.launches) == {"softmax_resident": 48}


@pytest.mark.parametrize("rows, vocab", ((65536, 1000), (262144, 100), (4096, 128256), (1, 128256), (3, 7)))
def test_scaling_starts_no_more_programs_than_run_at_once(stub, rows, vocab):
    gradient = torch.empty(rows, vocab, dtype=torch.bfloat16, device="meta")
    for factor in (torch.ones((), device="meta"), torch.ones(rows, device="meta")):
        backend.scale_rows(gradient, factor)
    for each in stub.launches:
        assert each.grid[0] * each.grid[1] <= 132 * 16
        stride, count, units, tiles, steps = each.arguments[2:]
        unit, block = vocab // units, min(1 << (vocab - 1).bit_length(), 1024)
        assert stride * unit == vocab and count == rows
        assert each.grid[0] * tiles * (1024 // block) >= rows and each.grid[1] * steps * block >= vocab


def test_every_loss_is_kept_apart(stub):
    for name in LOSSES:
        divergence(64, 64, loss=name)()
    divergence(64, 64)()
    used = [each.compiled for each in stub.launches]
    assert len(set(used)) == len(LOSSES) and used[-1] in used[:-1]
