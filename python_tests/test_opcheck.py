"""torch.library's own checks of every operator: schema, autograd registration, fakes and tracing."""

import pytest
import torch
from cases import BF16, DEFAULT_LOSSES, F16, F32, F64, logits, name_of, on, pair, per_class

pytestmark = pytest.mark.usual_memory  # inductor plans memory itself; a filled torch.empty would change its graphs

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
EVERY_UTILITY = pytest.mark.parametrize("utility", UTILITIES)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=name_of)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@EVERY_UTILITY
@EVERY_DTYPE
@pytest.mark.parametrize("variant", ["plain", "everything", "rows", "no gradient", "cut"])
def test_divergence(kernel, utility, dtype, variant):
    student, teacher = pair(4, 7, dtype=dtype, device=kernel.device)
    wide = F64 if dtype == F64 else F32
    row = torch.rand(4, dtype=wide, device=kernel.device)
    labels = torch.tensor([0, 6, 3, 3], device=kernel.device)
    full = variant in ("everything", "rows")
    tensors = (labels, row, 1 - row) if full else (None, None, None)
    if variant == "no gradient":
        student = student.detach()
    vocab, reduce = 5 if variant == "cut" else None, variant != "rows"
    for loss in DEFAULT_LOSSES if variant == "plain" else (DEFAULT_LOSSES[0], per_class(vocab or 7)):
        table = on(kernel.device, loss).table(wide)
        scalars = torch.tensor([loss.parameter(), 2.0, 0.7, 0.2 if full else 0.0], dtype=F64)
        call = (student, teacher, *tensors, table, loss.name, vocab, reduce, kernel.backend, scalars)
        torch.library.opcheck(torch.ops.kdkernels.divergence.default, call, test_utils=utility)
        if utility != "test_autograd_registration":
            upstream = torch.rand((() if reduce else (4,)), dtype=wide, device=kernel.device)
            operator = torch.ops.kdkernels.divergence_gradient.default
            torch.library.opcheck(operator, (student.detach(), *call[1:], upstream), test_utils=utility)


@EVERY_UTILITY
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name_of)
@pytest.mark.parametrize("log", [False, True])
def test_softmax(kernel, utility, dtype, log):
    z, upstream = pair(4, 7, dtype=dtype, device=kernel.device)
    temperature = torch.tensor([2.0], dtype=F64)
    torch.library.opcheck(
        torch.ops.kdkernels.softmax.default, (z, log, kernel.backend, temperature), test_utils=utility
    )
    output = torch.log_softmax(z, -1).detach() if log else torch.softmax(z, -1).detach()
    operator = torch.ops.kdkernels.softmax_backward.default
    torch.library.opcheck(operator, (upstream, output, log, kernel.backend, temperature), test_utils=utility)


@EVERY_UTILITY
@EVERY_DTYPE
@pytest.mark.parametrize("variant", ["plain", "means", "squared means", "no gradient", "cut"])
def test_trilateral(kernel, utility, dtype, variant):
    student, teacher = pair(4, 7, dtype=dtype, device=kernel.device)
    vocab, squared = 5 if variant == "cut" else None, variant == "squared means"
    labels = torch.tensor([0, 4, -100, 3], device=kernel.device)
    means = logits(7, 7, device=kernel.device, seed=3).softmax(-1) if "means" in variant else None
    student = student.detach() if variant == "no gradient" else student
    edges = (teacher, means, labels, squared, -100, vocab, kernel.backend)
    torch.library.opcheck(torch.ops.kdkernels.trilateral.default, (student, *edges), test_utils=utility)
    distances, statistics = (x.detach() for x in torch.ops.kdkernels.trilateral.default(student, *edges))
    upstream = logits(*distances.shape, dtype=distances.dtype, device=kernel.device, seed=4)
    call = (student.detach(), *edges, statistics, distances, upstream)
    torch.library.opcheck(torch.ops.kdkernels.trilateral_backward.default, call, test_utils=utility)
