"""What is allocated: no gradient wanted, nothing of (rows x vocab) size; with one, the gradient and nothing else."""

import re
from pathlib import Path

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, on, pair, per_class
from run_examples import python
from torch.profiler import ProfilerActivity, profile

import kdkernels as kd

pytestmark = pytest.mark.usual_memory

ROWS, VOCAB = 64, 2048
EVERY_LOSS = pytest.mark.parametrize("loss", DEFAULT_LOSSES, ids=name_of)
# float16 makes its gradient in backward (see `divergence`), the others in forward.
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)


def large_allocations(device, work, unit):
    """How many tensors of at least half a unit of bytes PyTorch's allocator hands out during work()."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as record:
        work()
    events = record.profiler.kineto_results.events()
    return sum(event.name() == "[memory]" and event.nbytes() >= unit / 2 for event in events)


@pytest.fixture
def batch(kernel):
    def make(dtype):
        student, teacher = pair(ROWS, VOCAB, dtype=dtype, device=kernel.device)
        return student, teacher, torch.arange(ROWS, device=kernel.device), student.nbytes

    return make


def test_the_count_sees_what_eager_pytorch_allocates():
    """The measure itself: log_softmax twice, kl_div and a copy or two."""
    student, teacher = pair(ROWS, VOCAB)

    def work():
        torch.nn.functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True).backward()

    assert large_allocations("cpu", work, student.nbytes) >= 4


@EVERY_LOSS
@DTYPES
@pytest.mark.parametrize("op", ["divergence", "distillation"])
def test_no_gradient_no_allocation(kernel, batch, loss, dtype, op):
    student, teacher, labels, unit = batch(dtype)
    extra = (labels,) if op == "distillation" else ()

    def work():
        getattr(kd, op)(student.detach(), teacher, *extra, loss, temperature=2.0, backend=kernel.backend)
        with torch.no_grad():
            getattr(kd, op)(student, teacher, *extra, loss, temperature=2.0, backend=kernel.backend)

    assert large_allocations(kernel.device, work, unit) == 0


@EVERY_LOSS
@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_gradient_and_none_in_backward(kernel, batch, loss, dtype, reduction):
    """Forward and backward together allocate the gradient alone, which ends up as student.grad, unless scaled."""
    student, teacher, labels, unit = batch(dtype)
    values = []

    def forward():
        values.append(kd.divergence(student, teacher, loss, reduction=reduction, backend=kernel.backend))

    def backward():
        upstream = torch.ones_like(values[0])
        (gradient,) = torch.autograd.grad(values[0], student, upstream)
        values.append(gradient)

    counts = large_allocations(kernel.device, forward, unit), large_allocations(kernel.device, backward, unit)
    assert counts == ((0, 1) if dtype == F16 else (1, 0))


@DTYPES
@pytest.mark.parametrize("upstream", [1.0, 0.3, "per row"])
def test_a_whole_step_holds_one_gradient(kernel, batch, dtype, upstream):
    """Also where the upstream is not 1: the saved gradient is scaled where it lies, since its graph is being freed."""
    student, teacher, labels, unit = batch(dtype)
    factor = torch.rand(ROWS, device=kernel.device) if upstream == "per row" else upstream

    def work():
        value = kd.divergence(student, teacher, reduction="none", temperature=2.0, backend=kernel.backend)
        (factor * value).sum().backward()

    assert large_allocations(kernel.device, work, unit) == 1
    assert student.grad is not None


@DTYPES
def test_inplace_allocates_none(kernel, batch, dtype):
    student, teacher, labels, unit = batch(dtype)
    results = []
    for op, extra in ((kd.divergence, ()), (kd.distillation, (labels,))):
        leaf = student.detach().requires_grad_()
        z = leaf + 0.0  # hands the gradient on as it is

        def work(op=op, extra=extra, z=z, leaf=leaf):
            value = op(z, teacher, *extra, inplace=True, backend=kernel.backend)
            results.append(torch.autograd.grad(0.5 * value, leaf)[0])

        assert large_allocations(kernel.device, work, unit) == 0
        assert results[-1].data_ptr() == z.data_ptr()


def test_a_kept_graph_may_cost_one_copy_and_no_more(kernel, batch):
    student, teacher, labels, unit = batch(F32)
    value = 0.3 * kd.divergence(student, teacher, backend=kernel.backend)
    work = lambda: torch.autograd.grad(value, student, retain_graph=True)  # noqa: E731
    assert large_allocations(kernel.device, work, unit) <= 1


@DTYPES
@pytest.mark.parametrize("how", ["vocab_size", "wide", "every other row"])
def test_slices_are_not_copied(kernel, dtype, how):
    """vocab_size and strided rows cost no copy of either tensor."""
    student, teacher = (logits(2 * ROWS, VOCAB + 64, dtype=dtype, device=kernel.device, seed=seed) for seed in (0, 1))
    cut = {"vocab_size": VOCAB} if how == "vocab_size" else {}
    rows = slice(None, None, 2) if how == "every other row" else slice(None)
    columns = slice(32, -32) if how == "wide" else slice(None)
    student, teacher = student[rows, columns], teacher[rows, columns]
    work = lambda: kd.divergence(student, teacher, backend=kernel.backend, **cut)  # noqa: E731
    assert large_allocations(kernel.device, work, student.nbytes) == 0


def test_shifted_time_steps_are_not_copied(kernel):
    """logits[:, :-1] of (batch, time, vocab): what causal language models pass, and rows are strided there too."""
    student, teacher = (logits(4, 17, VOCAB, device=kernel.device, seed=seed)[:, :-1] for seed in (0, 1))
    work = lambda: kd.divergence(student, teacher, backend=kernel.backend)  # noqa: E731
    assert large_allocations(kernel.device, work, student.nbytes) == 0


@DTYPES
def test_softmax_allocates_its_result_and_its_gradient(kernel, batch, dtype):
    student, _, _, unit = batch(dtype)
    upstream = torch.ones_like(student)
    for function in (kd.softmax, kd.log_softmax):
        results = []
        forward = lambda f=function, r=results: r.append(f(student, temperature=2.0, backend=kernel.backend))  # noqa: E731
        backward = lambda r=results: r.append(torch.autograd.grad(r[0], student, upstream))  # noqa: E731
        assert large_allocations(kernel.device, forward, unit) == 1
        assert large_allocations(kernel.device, backward, unit) == 1


@DTYPES
@pytest.mark.parametrize("means", [False, True], ids=["three", "five"])
@pytest.mark.parametrize("reused", [False, True], ids=["one walk", "kept graph"])
def test_trilateral_allocates_its_gradient_in_backward(kernel, dtype, means, reused):
    """Neither of the softmaxes, nor the label's one-hot row, nor its class mean ever is a (rows x vocab) tensor."""
    student, teacher = pair(512, 512, dtype=dtype, device=kernel.device)
    labels = torch.arange(512, device=kernel.device)
    table = logits(512, 512, dtype=dtype, device=kernel.device).softmax(-1) if means else None
    results = []
    call = lambda z: results.append(kd.trilateral_distances(z, teacher, labels, table, backend=kernel.backend))  # noqa: E731
    back = lambda: results.append(torch.autograd.grad(results[1].sum(), student, retain_graph=reused))  # noqa: E731
    assert large_allocations(kernel.device, lambda: call(student.detach()), student.nbytes) == 0
    assert large_allocations(kernel.device, lambda: call(student), student.nbytes) == 0
    for _ in range(2 if reused else 1):
        assert large_allocations(kernel.device, back, student.nbytes) == 1


@pytest.mark.parametrize("how", ["vocab_size", "columns", "next token", "every other row"])
def test_trilateral_of_slices_is_not_copied(kernel, how):
    wide = {"columns": (VOCAB + 64,), "vocab_size": (VOCAB + 64,)}.get(how, (VOCAB,))
    rows = {"next token": (4, 17), "every other row": (2 * ROWS,)}.get(how, (ROWS,))
    cut = {
        "columns": (..., slice(32, -32)),
        "next token": (slice(None), slice(-1)),
        "every other row": slice(None, None, 2),
    }.get(how, ...)
    options = {"vocab_size": VOCAB} if how == "vocab_size" else {}
    base, teacher = (logits(*rows, *wide, device=kernel.device, seed=seed) for seed in (0, 1))
    student, teacher = base[cut].requires_grad_(), teacher[cut]
    labels, values = torch.zeros(student.shape[:-1], dtype=torch.int64, device=kernel.device), []
    forward = lambda: values.append(  # noqa: E731
        kd.trilateral_distances(student, teacher, labels, backend=kernel.backend, **options)
    )
    assert large_allocations(kernel.device, forward, student.nbytes) == 0
    assert large_allocations(kernel.device, lambda: torch.autograd.grad(values[0].sum(), student), student.nbytes) == 1


def test_coefficients_per_class_are_not_spread_over_rows(kernel, batch):
    student, teacher, labels, unit = batch(F32)
    loss = on(kernel.device, per_class(VOCAB))
    for op, extra in ((kd.divergence, ()), (kd.distillation, (labels,))):
        work = lambda op=op, extra=extra: op(student, teacher, *extra, loss, backend=kernel.backend).backward()  # noqa: E731
        assert large_allocations(kernel.device, work, unit) == 1
        student.grad = None


def growths_of_a_process():
    """In a process of its own (in an older one malloc may hold enough freed memory for a gradient): how far the
    peak of resident memory rises in a call without and in one with a gradient, in units of the logits' bytes."""
    status = Path("/proc/self/status")

    def kilobytes(name):
        return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])

    student, teacher = (logits(1024, 8192, seed=seed) for seed in (0, 1))
    student.requires_grad_()
    kd.divergence(student[:2], teacher[:2], backend="native").backward()
    student.grad = None
    for grad in (False, True):
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        with torch.set_grad_enabled(grad):
            value = kd.divergence(student, teacher, temperature=2.0, backend="native")
        if grad:
            value.backward()
        print((kilobytes("VmHWM") - before) * 1024 / student.nbytes)


def test_nothing_large_is_allocated_behind_pytorch_s_back(tmp_path):
    """C++ could take its memory elsewhere, which the profiler does not see and the kernel's high-water mark does."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the high-water mark of resident memory can be reset on Linux only")
    printed = python(tmp_path, "-c", "import test_memory; test_memory.growths_of_a_process()")
    assert [float(line) for line in printed.split()] == pytest.approx([0, 1], abs=0.15)
