"""Models that the tangent kernel is not made for: a right kernel or an error, never a wrong number in silence."""

import pytest
import torch
import torch.nn.functional as F
from cases import BF16, F16, F32, F64, name_of
from complexity_grams import vectors
from complexity_models import check_kernel, definition
from torch import nn

from kdkernels.methods import complexity


class Own(nn.Module):
    """Two layers, a weight of which is also in a plain list, and a forward of the test's."""

    def __init__(self, function, dtype=F64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(4, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        self.function, self.around = function, [self.layer.weight]

    def forward(self, x):
        return self.function(self, x)


def ntk(model, x=None, **options):
    return complexity.empirical_ntk(model, vectors(5, 4) if x is None else x, **{"progress": False} | options)


def test_weights_that_are_reached_around_their_names():
    """They would be constants there, and the kernel that of the head alone."""
    model = Own(lambda self, x: self.head(F.linear(x, self.around[0])))
    with pytest.raises(ValueError, match="model must reach its parameters by their registered names"):
        ntk(model)
    with torch.no_grad(), pytest.raises(ValueError, match="registered names"):
        ntk(model)


@pytest.mark.parametrize("how", ["frozen", "detached"])
def test_weights_that_are_reached_around_their_names_as_constants(how):
    model = Own(
        lambda self, x: self.head(F.linear(x, self.around[0].detach() if how == "detached" else self.around[0]))
    )
    model.layer.requires_grad_(how != "frozen")
    x = vectors(5, 4)
    check_kernel(ntk(model, x), definition(model, x), 1e-13)


CHUNKS = pytest.mark.parametrize("chunk", [1, 2, 32])
MEETINGS = {
    "the later one has the earlier ones": lambda z: z.cumsum(0),
    "the earlier one has the later ones": lambda z: z.flip(0).cumsum(0).flip(0),
    "a mean": lambda z: z - z.mean(0),
    "a small mean": lambda z: 1e-9 * (z - z.mean(0)),
    "a part of a mean": lambda z: z + 0.01 * z.mean(0),
    "their number": lambda z: z / len(z),
}


@CHUNKS
@pytest.mark.parametrize("how", MEETINGS)
def test_examples_that_meet_are_refused(how, chunk):
    with pytest.raises(ValueError, match="alone and in a batch"):
        ntk(Own(lambda self, x: MEETINGS[how](self.layer(x))), chunk=chunk)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=name_of)
def test_examples_that_meet_are_refused_in_every_dtype(dtype):
    with pytest.raises(ValueError, match="alone and in a batch"):
        ntk(Own(lambda self, x: self.layer(x) - self.layer(x).mean(0), dtype), vectors(5, 4, dtype=dtype))


def test_examples_that_meet_in_small_outputs_of_single_precision():
    with pytest.raises(ValueError, match="alone and in a batch"):
        ntk(Own(lambda self, x: 1e-5 * self.layer(x).cumsum(0), F32), vectors(5, 4, dtype=F32))


class Balanced(nn.Module):
    """Zero by construction: two halves that cancel within one product, up to its rounding."""

    def __init__(self, width, dtype):
        super().__init__()
        self.inside, self.out = nn.Linear(16, width, dtype=dtype), nn.Linear(2 * width, 3, bias=False, dtype=dtype)
        half = vectors(3, width, dtype=dtype) / width**0.5
        self.out.weight.data = torch.cat([half, -half], -1)

    def forward(self, x):
        return self.out(torch.relu(self.inside(x)).repeat(1, 2))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=name_of)
@pytest.mark.parametrize("width", [7, 1024])
def test_outputs_that_are_rounding_alone_are_no_meeting(width, dtype):
    ntk(Balanced(width, dtype), vectors(17, 16, dtype=dtype), outputs=0)


def test_outputs_of_zero_and_outputs_that_are_masked_out():
    x = vectors(5, 4)
    zero = Own(lambda self, x: self.head(torch.tanh(self.layer(x))))
    nn.init.zeros_(zero.head.weight), nn.init.zeros_(zero.head.bias)
    masked = Own(lambda self, x: self.layer(x).masked_fill(torch.tensor([True, False, False]), -torch.inf))
    for model in (zero, masked):
        check_kernel(ntk(model, x), definition(model, x), 1e-13)


CHANGES = {"relu": torch.relu_, "scale": lambda x: x.sub_(0.5).mul_(2.0)}


@CHUNKS
@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_the_model_writes_to(change, chunk):
    """Its gradient is walked in several groups: each must find the input as it was."""
    x = vectors(5, 4)
    before, model = x.clone(), Own(lambda self, x: self.layer(CHANGES[change](x)))
    got = ntk(model, x, chunk=chunk, memory=15 * 8 * 4)
    assert torch.equal(x, before)
    check_kernel(got, definition(model.layer, CHANGES[change](before)), 1e-13)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("trained", [True, False])
def test_an_embedding_that_renormalises_its_weight(trained):
    """torch.func cannot map it; the probe before has it renormalised a copy."""
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=0.1), nn.Flatten(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(trained)
    before = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError):
        ntk(model, torch.arange(10).reshape(5, 2) % 6)
    assert torch.equal(model[0].weight, before)


def test_a_model_that_writes_to_its_weight():
    def clipped(self, x):
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)
        return self.head(self.layer(x))

    model, x = Own(clipped), vectors(5, 4)
    before, wanted = model.layer.weight.detach().clone(), definition(model, x)
    check_kernel(ntk(model, x), wanted, 1e-13)
    assert torch.equal(model.layer.weight, before)


@CHUNKS
def test_outputs_without_a_dimension_where_there_is_one_example(chunk):
    """squeeze() takes the batch's dimension too."""
    x = vectors(5, 4)
    for width in (1, 3):
        layer = nn.Linear(4, width, dtype=F64)
        got = ntk(nn.Sequential(layer, Squeezed()), x, chunk=chunk)
        check_kernel(got, definition(layer, x), 1e-13)


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze()


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "RecursiveScriptModule": torch.jit.script,
    "TopLevelTracedModule": lambda model: torch.jit.trace(model, vectors(5, 4)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_whose_weights_cannot_be_replaced(kind):
    with pytest.raises(ValueError, match=f"model must .*got {kind}: pass"):
        ntk(WRAPPED[kind](nn.Linear(4, 3, dtype=F64)))


@pytest.mark.parametrize("memory", [1 << 30, 8])
def test_a_derivative_that_is_not_finite(memory):
    root = Own(lambda self, x: (0 * self.layer(x)).sqrt())
    with pytest.raises(ValueError, match="model must have derivatives .*float64, got (nan|inf) in row 0"):
        ntk(root, memory=memory)
    x = vectors(5, 4, dtype=F32)
    x[3] *= 1e20
    with pytest.raises(ValueError, match="model must have derivatives .*float32, got inf in row 9"):
        ntk(nn.Linear(4, 3), x)
    assert ntk(nn.Linear(4, 3), x, dtype=F64).isfinite().all()


def test_outputs_that_are_no_numbers():
    with pytest.raises(ValueError, match="model must return outputs that are numbers, got a NaN"):
        ntk(nn.Linear(4, 3, dtype=F64), vectors(5, 4).fill_(torch.nan))
