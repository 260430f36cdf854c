"""What the tangent kernel leaves behind in the model (nothing), what it costs, and what it prints."""

import contextlib
import sys

import pytest
import torch
import torch.nn.functional as F
from cases import F32, F64
from complexity_models import FEATURES, OUTPUTS, allocations, check_kernel, definition, inputs, network
from torch import nn

from kdkernels.methods import complexity


class State:
    """Everything of a model that must be as before, taken when this is made."""

    def __init__(self, model):
        self.model, self.taken = model, self.look(model)
        self.grads = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
        self.values = {name: each.clone() for name, each in model.state_dict().items()}
        self.rng = torch.get_rng_state()

    @staticmethod
    def look(model):
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        identities = [(name, id(each), each.data_ptr(), each.requires_grad, id(each.grad)) for name, each in tensors]
        return identities, [module.training for module in model.modules()], torch.is_grad_enabled()

    def check(self):
        assert self.look(self.model) == self.taken
        assert torch.equal(torch.get_rng_state(), self.rng)
        for name, each in self.model.state_dict().items():
            assert torch.equal(each, self.values[name]), name
        for parameter, grad in zip(self.model.parameters(), self.grads, strict=True):
            assert grad is None or torch.equal(parameter.grad, grad)


def used(model):
    """As in the middle of a training: some gradients there, and a part of the model kept in eval mode."""
    for number, each in enumerate(model.parameters()):
        each.grad = torch.full_like(each, 0.5) if number % 2 and each.requires_grad else None
    model.train()
    list(model.modules())[-1].eval()
    return model


@pytest.mark.parametrize("name", ["mlp", "norms", "tied", "vector"])
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_as_before(name, training):
    model = used(network(name))
    if not training:
        model.eval()
    state = State(model)
    complexity.empirical_ntk(model, inputs(name), chunk=2, memory=17 * 15 * 8, progress=False)
    state.check()


def test_a_model_in_eval_mode_gives_the_same():
    model, x = network("norms"), inputs("norms")
    got = complexity.empirical_ntk(model, x, progress=False)
    assert torch.equal(got, complexity.empirical_ntk(model.eval(), x, progress=False))


class Failed(Exception):
    pass


class Breaks(nn.Module):
    """Fails at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.body, self.at, self.calls = network("norms"), at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise Failed
        return self.body(x)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_everything_is_as_before_after_an_exception(at):
    """Four examples, one at once: the model is called at least four times."""
    model = used(Breaks(at))
    state = State(model)
    with pytest.raises(Failed):
        complexity.empirical_ntk(model, inputs("norms", 4), chunk=1, memory=20 * 12 * 8, progress=False)
    state.check()


class Noisy(nn.Module):
    """Draws numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x):
        return F.dropout(self.linear(x), 0.5, training=True)


class Writes(nn.Module):
    """Writes its buffers in eval mode too: a counter, and statistics of what came."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, OUTPUTS)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("variance", torch.ones(FEATURES))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(F.batch_norm(x, self.mean, self.variance, training=True))


@pytest.mark.parametrize("make", [Noisy, Writes])
def test_numbers_drawn_and_buffers_written_by_the_model_itself(make):
    """Whether such a model can be differentiated by example or not: RNG and buffers are as before."""
    model, x = used(make()), inputs("mlp", dtype=F32)
    state = State(model)
    with contextlib.suppress(RuntimeError, ValueError):
        complexity.empirical_ntk(model, x, chunk=2, progress=False)
    state.check()


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.calls = network("mlp"), 0

    def forward(self, x):
        self.calls += 1
        return self.body(x)


def test_each_example_is_differentiated_once_where_everything_fits():
    """Three chunks in one group; three more calls find out what the model returns: a batch, and both its ends alone."""
    model = Counted()
    complexity.empirical_ntk(model, inputs("mlp", 12), chunk=4, progress=False)
    assert model.calls == 3 + 3


@pytest.mark.usual_memory
@pytest.mark.parametrize("outputs", ["all", "sum"])
def test_the_jacobian_never_stands_whole(outputs):
    """One weight of 100,000 elements, of which a group holds a tenth: a block of `memory` bytes, and what one chunk's
    derivative of that weight takes on its way there (a few copies of chunk x outputs x weight)."""
    n, outer, inner = 24, 2, 50_000
    model = nn.Sequential(nn.Linear(inner, outer))
    x = torch.randn(n, inner, generator=torch.Generator().manual_seed(0))
    whole = n * outer * inner * outer * 4
    memory, one = whole // 10, outer * inner * outer * 4
    measure = lambda: torch.zeros(n * outer, inner * outer)  # noqa: E731
    assert min(allocations(measure)) >= whole
    result = []

    def work():
        result.append(complexity.empirical_ntk(model, x, outputs=outputs, chunk=1, memory=memory, progress=False))

    peak, largest = allocations(work)
    assert largest <= max(memory, one)
    assert peak <= 2 * memory + 4 * one < whole / 2
    check_kernel(result[0], definition(model, x, outputs), 1e-4)  # 50,000 terms in single precision


def test_the_bar_can_be_done_without(capsys, monkeypatch):
    model, x = network("mlp"), inputs("mlp")
    complexity.empirical_ntk(model, x, chunk=1, progress=True)
    assert capsys.readouterr().err != ""
    complexity.empirical_ntk(model, x, chunk=1, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # what an import finds where tqdm is not installed
    monkeypatch.setitem(sys.modules, "tqdm", None)
    got = complexity.empirical_ntk(model, x, chunk=1, progress=True)
    check_kernel(got, definition(model, x), 1e-13)
    assert got.dtype == F64 and capsys.readouterr().err == ""
