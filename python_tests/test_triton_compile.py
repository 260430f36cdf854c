"""The Triton kernels compiled for GPUs that are not here: each fits its chip and spills no register.

The default run covers every loss x target x form, and every dtype and kernel on a subset; KDKERNELS_COMPILE=full runs
all losses x dtype pairs x lengths x targets, with and without gradient and labels (6048 kernels, about an hour).
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from kdkernels.losses import LOSSES, Loss, Perturbed

triton = pytest.importorskip("triton", reason="the Triton backend is an extra")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 leaves no compiler to test", allow_module_level=True)

from _triton_offline import (  # noqa: E402
    SHARED_MEMORY,
    TARGETS,
    Usage,
    compiling_for,
    example,
    launch_divergence,
    launch_trilateral,
    usage,
)

from kdkernels.backends import launch  # noqa: E402
from kdkernels.backends import triton as backend  # noqa: E402
from kdkernels.backends.calls import Divergence, Softmax  # noqa: E402
from kdkernels.kernels import config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FULL = os.environ.get("KDKERNELS_COMPILE") == "full"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Resident rows that are unaligned (10, 100, 1000), the two streaming rows, aligned.
VOCABS = (10, 100, 1000, 32000, 128256)
# The longest resident row, whose threads have the fewest registers, and streaming rows that no vector load may touch.
EDGES = (8192, 50257)
HEAVIEST = LOSSES["skew_reverse_kl"]()


def assert_fits(target: str, found: list[Usage]) -> None:
    for kernel in found:
        assert kernel.spilled == 0 and kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[target], kernel
        assert kernel.threads <= 1024, kernel


def divergence_usage(
    target: str, loss: Loss, vocab: int, student, teacher, gradient=True, labels=True, launches=1
) -> list[Usage]:
    with compiling_for(target) as compiled:
        launch_divergence(loss, vocab, student, teacher, gradient=gradient, labels=labels)
    assert len(compiled) == launches
    return [usage(kernel) for kernel in compiled]


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_loss_fits(target, name, vocab):
    assert_fits(target, divergence_usage(target, example(name), vocab, torch.bfloat16, torch.bfloat16))


@pytest.mark.parametrize("vocab", (8192, 128256))
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES[::2], DTYPES[::2])), ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_dtype_fits(target, dtypes, vocab):
    assert_fits(target, divergence_usage(target, HEAVIEST, vocab, *dtypes))


@pytest.mark.parametrize("wanted", [(False, False), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("vocab", EDGES)
@pytest.mark.parametrize("target", TARGETS)
def test_less_wanted_fits(target, vocab, wanted):
    gradient, labels = wanted
    assert_fits(target, divergence_usage(target, HEAVIEST, vocab, torch.float16, torch.float16, gradient, labels))


@pytest.mark.parametrize("vocab", [row.size // 4 for row in config.DIVERGENCE if isinstance(row, config.Resident)])
@pytest.mark.parametrize("target", TARGETS)
def test_every_launch_config_fits(target, vocab):
    assert_fits(target, divergence_usage(target, LOSSES["jensen_shannon"](), vocab, torch.float32, torch.float32))


@pytest.mark.parametrize(
    "vocab, log",
    [(vocab, True) for vocab in (100, 1000, 8192, 16384, 50257, 128256)] + [(1000, False), (128256, False)],
)
@pytest.mark.parametrize("target", TARGETS)
def test_softmax_fits(target, vocab, log):
    tensor = torch.empty(64, vocab, dtype=torch.bfloat16, device="meta")
    with compiling_for(target) as compiled:
        backend.softmax(tensor, tensor, Softmax(2.0, log))
        backend.softmax_backward(tensor, tensor, tensor, Softmax(2.0, log))
    assert_fits(target, [usage(kernel) for kernel in compiled])


@pytest.mark.parametrize("vocab", (1, 100, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_scale_fits(target, vocab):
    with compiling_for(target) as compiled:
        gradient = torch.empty(64, vocab, dtype=torch.bfloat16, device="meta")
        backend.scale_rows(gradient, torch.empty((), device="meta"))
        backend.scale_rows(gradient, torch.empty(64, device="meta"))
    assert_fits(target, [usage(kernel) for kernel in compiled])


@pytest.mark.parametrize("loss", (LOSSES["forward_kl"](), example("perturbed")), ids=lambda loss: loss.name)
@pytest.mark.parametrize("vocab", (20011, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_rows_in_parts_fit(target, vocab, loss, monkeypatch):
    monkeypatch.setattr(launch, "processors", lambda tensor: 132)
    used = divergence_usage(target, loss, vocab, torch.bfloat16, torch.bfloat16, launches=3)
    assert {kernel.kernel for kernel in used} == {"split_sums", "split_terms", "split_finish"}
    assert_fits(target, used)


@pytest.mark.parametrize("vocab", (1000, 4096, 8192, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_a_table_with_a_column_per_class_fits(target, vocab):
    """The most orders: each is a tile of float32 that compilers like to load early."""
    loss = Perturbed(torch.ones(vocab, 8))
    assert_fits(target, divergence_usage(target, loss, vocab, torch.bfloat16, torch.bfloat16))


@pytest.mark.parametrize("vocab", (100, 8192, 50257, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_trilateral_fits(target, vocab):
    with compiling_for(target) as compiled:
        launch_trilateral(vocab, torch.bfloat16, torch.bfloat16, torch.float32, squared=False, gradient=True)
    assert len(compiled) == 2
    assert_fits(target, [usage(kernel) for kernel in compiled])


@pytest.mark.parametrize(
    "vocab, dtype, mean",
    ((1000, torch.float16, None), (1000, torch.float32, torch.float32), (8192, torch.float32, torch.float64)),
    ids=str,
)
@pytest.mark.parametrize("target", TARGETS)
def test_other_trilaterals_fit(target, vocab, dtype, mean):
    with compiling_for(target) as compiled:
        launch_trilateral(vocab, dtype, torch.float32, mean, squared=True, gradient=mean is not None)
    assert_fits(target, [usage(kernel) for kernel in compiled])


def test_a_schedule_of_numbers_recompiles_nothing():
    """beta, T, the scales and the number of rows travel at run time: one kernel serves them all."""
    logits = torch.empty(64, 1000, device="meta")
    with compiling_for("sm_90") as compiled:
        for step, rows in enumerate((1, 2, 16, 63)):
            numbers = {"parameter": 0.1 * step + 0.1, "temperature": float(step + 1), "soft_scale": float(step)}
            call = Divergence(loss="jensen_shannon", **numbers)
            backend.divergence(logits[:rows], logits[:rows], logits[:rows], call)
    assert len(set(map(id, compiled))) == 1


def test_a_kernel_per_number_of_orders():
    """The loop over the orders is unrolled; the coefficients themselves travel at run time."""
    with compiling_for("sm_90") as compiled:
        for coefficients in (torch.ones(3), torch.zeros(3), torch.ones(2), torch.ones(100, 3), torch.ones(100, 3) / 2):
            loss = Perturbed(coefficients)
            launch_divergence(loss, 100, torch.float32, torch.float32, gradient=False, labels=False)
    assert [compiled.index(kernel) for kernel in compiled] == [0, 0, 2, 3, 3]


def test_tables_are_loaded_as_the_logits_are():
    """By vectors where the rows are aligned; elsewhere one by one, and nothing is traded through shared memory."""
    for vocab, vectors in ((128256, True), (50257, False), (4096, True), (1000, True), (1271, False)):
        with compiling_for("sm_90") as compiled:
            loss = Perturbed(torch.ones(vocab, 2))
            launch_divergence(loss, vocab, torch.bfloat16, torch.bfloat16, gradient=True, labels=False)
        ptx = compiled[0].asm["ptx"]
        # The row's weight is loaded once, or once for each of the layouts that it is needed in.
        vector_loads, loads = ptx.count("ld.global.v4.b32"), max(ptx.count("ld.global.b32") - 2, 0)
        assert (vector_loads > 0, loads > 0) == (vectors, not vectors) and compiled[0].metadata.shared <= 128, vocab


if FULL:

    @pytest.mark.parametrize("vocab", (*VOCABS, *EDGES, 1271))
    @pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("target", TARGETS)
    def test_the_whole_matrix_fits(target, name, dtypes, vocab):
        for gradient, labels in itertools.product((False, True), (False, True)):
            assert_fits(target, divergence_usage(target, example(name), vocab, *dtypes, gradient, labels))
