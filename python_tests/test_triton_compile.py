"""The Triton kernels compiled for GPUs that are not here: each fits its chip and spills no register.

The default run covers every loss x target x form, and every dtype and kernel on a subset; KDKERNELS_COMPILE=full runs
all losses x dtype pairs x lengths x targets, with and without gradient and labels (5184 kernels, about an hour).
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from kdkernels.losses import LOSSES

triton = pytest.importorskip("triton", reason="the Triton backend is an extra")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 leaves no compiler to test", allow_module_level=True)

from _triton_offline import SHARED_MEMORY, TARGETS, Usage, compiling_for, launch_divergence, usage  # noqa: E402

from kdkernels.backends import triton as backend  # noqa: E402
from kdkernels.kernels import config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FULL = os.environ.get("KDKERNELS_COMPILE") == "full"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Resident rows that are unaligned (10, 100, 1000), the two streaming rows, aligned.
VOCABS = (10, 100, 1000, 32000, 128256)
# The longest resident row, whose threads have the fewest registers, and streaming rows that no vector load may touch.
EDGES = (8192, 50257)
HEAVIEST = "skew_reverse_kl"


def assert_fits(target: str, found: list[Usage]) -> None:
    for kernel in found:
        assert kernel.spilled == 0 and kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[target], kernel
        assert kernel.threads <= 1024, kernel


def divergence_usage(target: str, loss: str, vocab: int, student, teacher, gradient=True, labels=True) -> list[Usage]:
    with compiling_for(target) as compiled:
        launch_divergence(loss, vocab, student, teacher, gradient=gradient, labels=labels)
    assert len(compiled) == 1
    return [usage(kernel) for kernel in compiled]


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_loss_fits(target, loss, vocab):
    assert_fits(target, divergence_usage(target, loss, vocab, torch.bfloat16, torch.bfloat16))


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


@pytest.mark.parametrize("vocab", [row.vocab for row in config.DIVERGENCE if isinstance(row, config.Resident)])
@pytest.mark.parametrize("target", TARGETS)
def test_every_launch_config_fits(target, vocab):
    assert_fits(target, divergence_usage(target, "jensen_shannon", vocab, torch.float32, torch.float32))


@pytest.mark.parametrize("log", (False, True))
@pytest.mark.parametrize("vocab", (100, 1000, 8192, 16384, 50257, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_softmax_fits(target, vocab, log):
    tensor = torch.empty(64, vocab, dtype=torch.bfloat16, device="meta")
    with compiling_for(target) as compiled:
        backend.softmax(tensor, tensor, temperature=2.0, log=log)
        backend.softmax_backward(tensor, tensor, tensor, temperature=2.0, log=log)
    assert_fits(target, [usage(kernel) for kernel in compiled])


@pytest.mark.parametrize("vocab", (1, 100, 128256))
@pytest.mark.parametrize("target", TARGETS)
def test_scale_fits(target, vocab):
    with compiling_for(target) as compiled:
        gradient = torch.empty(64, vocab, dtype=torch.bfloat16, device="meta")
        backend.scale_rows(gradient, torch.empty((), device="meta"))
        backend.scale_rows(gradient, torch.empty(64, device="meta"))
    assert_fits(target, [usage(kernel) for kernel in compiled])


def test_a_schedule_of_numbers_recompiles_nothing():
    """beta, T, the scales and the number of rows travel at run time: one kernel serves them all."""
    logits = torch.empty(64, 1000, device="meta")
    with compiling_for("sm_90") as compiled:
        for step, rows in enumerate((1, 2, 16, 63)):
            backend.divergence(
                logits[:rows],
                logits[:rows],
                None,
                None,
                None,
                logits[:rows],
                loss="jensen_shannon",
                parameter=0.1 * step + 0.1,
                table=None,
                temperature=float(step + 1),
                soft_scale=float(step),
                hard_scale=1.0,
            )
    assert len(set(map(id, compiled))) == 1


if FULL:

    @pytest.mark.parametrize("vocab", (*VOCABS, *EDGES, 1271))
    @pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("target", TARGETS)
    def test_the_whole_matrix_fits(target, loss, dtypes, vocab):
        for gradient, labels in itertools.product((False, True), (False, True)):
            assert_fits(target, divergence_usage(target, loss, vocab, *dtypes, gradient, labels))
