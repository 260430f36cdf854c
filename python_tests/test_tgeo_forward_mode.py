"""The hypergradient in half precision, of compiled students, and of students that have no forward mode."""

import pytest
import torch
from cases import BF16, F16, F32, logits, name_of
from tgeo_students import CLASSES, EVERY_DEVICE, SETTINGS, alphas, batches, make, seeded, unrolled
from torch import nn

from kdkernels.methods import tgeo


@EVERY_DEVICE
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=name_of)
@pytest.mark.parametrize(
    ("name", "how"), [("mlp", "parameters"), ("mlp", "autocast"), ("cnn with batch norm", "autocast")]
)
def test_half_precision(device, dtype, name, how):
    """Against the step unrolled in float64 from the same rounded weights and batches."""
    inside = dtype if how == "parameters" else F32
    (inputs, teacher, labels), (outer, outer_labels) = batches(name, device, inside)
    student, alpha = make(name, device, inside), alphas(labels)
    with torch.autocast(device, dtype, enabled=how == "autocast" and dtype != F32):
        got = tgeo.hypergradient(student, alpha.float(), (inputs, teacher, labels), (outer, outer_labels), **SETTINGS)
    assert got.dtype == F32
    exact = (inputs.double(), teacher.double(), labels), (outer.double(), outer_labels)
    wanted = unrolled(student.double(), alpha, *exact, **SETTINGS)
    digits = {BF16: 0.05, F16: 0.006, F32: 1e-5}[dtype]
    assert float((got.double() - wanted).norm() / wanted.norm()) < digits


def test_batch_norm_in_evaluation_mode_under_autocast():
    """PyTorch gives its tangent the wrong dtype there; the error says what helps, and it does."""
    train, validation = batches("cnn with batch norm", "cpu", F32)
    student, alpha = make("cnn with batch norm", "cpu", F32).eval(), alphas(train[2], F32)

    def exactly(module, inputs):
        with torch.autocast("cpu", enabled=False):
            return module(inputs)

    with torch.autocast("cpu", BF16):
        with pytest.raises(RuntimeError, match="switch autocast off in call="):
            tgeo.hypergradient(student, alpha, train, validation, **SETTINGS)
        got = tgeo.hypergradient(student, alpha, train, validation, call=exactly, **SETTINGS)
    torch.testing.assert_close(got, tgeo.hypergradient(student, alpha, train, validation, **SETTINGS))


@pytest.mark.parametrize("case", ["underflow", "overflow"])
def test_float16_holds_the_gradient_of_a_long_validation_batch(case):
    """Of a mean over 8000 rows of 1000 flat classes it would hold no element, of their sum no more than 65504."""
    torch.manual_seed(0)
    if case == "underflow":
        student, outer = nn.Linear(8, 1000), logits(8000, 8, seed=2, spread=0.1)
        inputs, outer_labels = logits(64, 8), torch.arange(8000) % 1000
    else:
        student, outer = nn.Linear(8, CLASSES), logits(20000, 8, seed=2) + 20.0
        inputs, outer_labels = logits(64, 8) + 20.0, torch.zeros(20000, dtype=torch.int64)
    train = (inputs, logits(64, student.out_features, seed=1), torch.arange(64) % student.out_features)
    alpha = alphas(train[2], F32)
    wanted = tgeo.hypergradient(student, alpha, train, (outer, outer_labels), **SETTINGS)
    with torch.autocast("cpu", F16):
        got = tgeo.hypergradient(student, alpha, train, (outer, outer_labels), **SETTINGS)
    assert float((got - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.usual_memory
def test_a_compiled_student_is_run_as_it_was_written():
    """What a compiler makes of it draws other masks and may have no forward mode."""
    train, validation = batches("dropout", "cpu", F32)
    student, alpha, ran = make("dropout", "cpu", F32), alphas(train[2], F32), []

    def compiler(graph, _):
        return lambda *inputs: ran.append(graph) or graph(*inputs)

    wanted = seeded(tgeo.hypergradient, student, alpha, train, validation, **SETTINGS)
    torch._dynamo.reset()
    compiled = torch.compile(student, backend=compiler)
    compiled(train[0])
    assert len(ran) == 1
    got = seeded(tgeo.hypergradient, compiled, alpha, train, validation, **SETTINGS)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert len(ran) == 1
    compiled(train[0])
    assert len(ran) == 2
    torch._dynamo.reset()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, upstream):
        return 2 * upstream


class WithoutForwardMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x):
        return Doubled.apply(self.linear(x))


def test_an_operation_without_a_forward_formula_says_what_to_do():
    train, validation = batches("mlp", "cpu", F32)
    with pytest.raises(
        RuntimeError, match="(?s)student cannot be differentiated in forward mode.*needs a jvp"
    ) as caught:
        tgeo.hypergradient(WithoutForwardMode(), alphas(train[2], F32), train, validation, **SETTINGS)
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_the_remedy_for_recurrent_layers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(x[:, None])[0][:, 0])

    def plainly(module, inputs):
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return module(inputs)

    torch.manual_seed(0)
    student = Recurrent()
    train, validation = batches("mlp", "cpu", F32)
    alpha = alphas(train[2], F32)
    with pytest.raises(RuntimeError, match=r"mkldnn.flags\(enabled=False\)"):
        tgeo.hypergradient(student, alpha, train, validation, **SETTINGS)
    got = tgeo.hypergradient(student, alpha, train, validation, call=plainly, **SETTINGS)
    train, validation = batches("mlp", "cpu")
    wanted = unrolled(student.double(), alpha.double(), train, validation, **SETTINGS)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-6)


def test_running_out_of_memory_stays_what_it_is():
    calls = []

    def call(module, inputs):
        calls.append(module)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return module(inputs)

    train, validation = batches("mlp", "cpu")
    with pytest.raises(torch.OutOfMemoryError, match="^no memory$"):
        tgeo.hypergradient(make("mlp", "cpu"), alphas(train[2]), train, validation, call=call, **SETTINGS)
