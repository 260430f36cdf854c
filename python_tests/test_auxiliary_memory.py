"""What the auxiliary-variable loss allocates: similarities and one gradient of 256 rows at most, none where none is
wanted."""

import pytest
import torch
from auxiliary_cases import SETTINGS, batch, entries, make_bank
from cases import BF16, F32
from test_memory import large_allocations
from torch.nn.functional import kl_div, normalize
from torch.profiler import ProfilerActivity, profile

import kdkernels as kd
from kdkernels.methods import auxiliary

pytestmark = pytest.mark.usual_memory

ROWS, BANK, DIM, CLASSES = 256, 16384, 32, 20
UNIT = 4 * ROWS * BANK
CHUNKS = {"cpu": ROWS, "cuda": 1024}
"""Rows of a chunk of a batch with such a bank, by device."""


def most_at_once(device, work):
    """(largest allocation, the most bytes beyond those at the start) that PyTorch's allocator hands out in work()."""
    if device == "cuda":
        work()  # the matrix library's workspace is nobody's memory
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(live.max()), int(live.cumsum(0).max())


@pytest.fixture
def bank(kernel):
    return make_bank(entries(BANK, DIM, CLASSES, device=kernel.device))


def step(bank, given, dtype=F32, **settings):
    z, zt, h, ht = (x.to(dtype) for x in given)
    z.requires_grad_()
    h.requires_grad_()
    auxiliary.auxiliary_divergence(z, zt, h, ht, bank, **(SETTINGS | settings)).mean().backward()
    assert z.grad is not None and bool(h.grad.any())


def test_the_measure_sees_the_eager_composition(kernel, bank):
    """Several (rows x bank) tensors, half a dozen of them at once."""
    z, zt, h, ht = batch(ROWS, DIM, CLASSES, device=kernel.device)

    def work():
        leaf = h.detach().requires_grad_()
        log_w, log_v = ((normalize(x) @ bank.features.T / 0.1).log_softmax(-1) for x in (leaf, ht))
        p = 0.5 * z.softmax(-1) + 0.5 * log_w.exp() @ bank.probs
        logit, feature = (
            kl_div(p.log(), zt.softmax(-1), reduction="sum"),
            kl_div(log_w, log_v, reduction="sum", log_target=True),
        )
        (logit + feature).backward()

    largest, peak = most_at_once(kernel.device, work)
    assert largest == UNIT and peak > 4 * UNIT
    assert large_allocations(kernel.device, work, UNIT) > 4


FORMS = {
    "training": lambda bank, given, index: step(bank, given, index=index),
    "bfloat16": lambda bank, given, index: step(bank, given, BF16, index=index),
    "mixture 1": lambda bank, given, index: step(bank, given, index=index, mixture=1.0),
    "no own entries": lambda bank, given, index: step(bank, given),
    "no gradient": lambda bank, given, index: auxiliary.auxiliary_divergence(*given, bank, **SETTINGS, index=index),
    "posterior": lambda bank, given, index: bank.posterior(given[2], 0.1, index),
}


@pytest.mark.parametrize("form", FORMS)
def test_similarities_and_one_gradient(kernel, bank, form):
    """A chunk of rows: the similarities of student and teacher and one more. Four times the rows take the same chunks,
    one after the other, so that nothing of (rows x bank) exists there.

    Not even a mask of own entries is made as a whole, nor do the chunks lie about together.
    """
    seen, rows = [], CHUNKS[kernel.device]
    unit = 4 * rows * BANK
    for times in (1, 4):
        given = batch(times * rows, DIM, CLASSES, device=kernel.device)
        index = torch.arange(100, 100 + times * rows, device=kernel.device)
        work = lambda given=given, index=index: FORMS[form](bank, given, index)  # noqa: E731
        with kd.use_backend(kernel.backend):
            seen.append(most_at_once(kernel.device, work))
    (largest, peak), (later_largest, later_peak) = seen
    assert largest == later_largest == unit
    assert later_peak - peak < unit / 4  # a few times (rows x C) and (rows x dim), 32 and 20 of them a row
    # On a GPU, where index cannot be looked at, a chunk has a mask of own entries besides: a quarter of a unit.
    assert later_peak < (3.25 if kernel.device == "cpu" else 3.5) * unit


@pytest.mark.parametrize(("dim", "classes"), [(8, 4096), (4096, 8)], ids=["logits", "features"])
def test_without_grad_no_gradients_are_made(kernel, dim, classes):
    """One tensor less of the logits' size, or of the features', than where their gradient is wanted."""
    bank = make_bank(entries(4, dim, classes, device=kernel.device))
    given = batch(64, dim, classes, device=kernel.device)
    z, h = (x.detach().requires_grad_() for x in given[::2])
    wanting = (z, given[1], h, given[3])

    def count(arguments, grad):
        def work():
            with torch.set_grad_enabled(grad):
                return auxiliary.auxiliary_divergence(*arguments, bank, **SETTINGS)

        with kd.use_backend(kernel.backend):
            return large_allocations(kernel.device, work, 4 * 64 * 4096)

    assert count(wanting, False) == count(given, True) < count(wanting, True)


def test_a_bank_is_not_copied(kernel):
    """Of a bank with long features and many classes, nothing of its size is made in a step."""
    bank = make_bank(entries(4096, 256, 256, device=kernel.device))
    given = batch(8, 256, 256, device=kernel.device)
    with kd.use_backend(kernel.backend):
        largest, _ = most_at_once(kernel.device, lambda: step(bank, given))
    assert largest < bank.features.nbytes / 2
