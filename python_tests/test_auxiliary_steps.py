"""The criterion as a step of training: compiled around, given what is odd, and refused before anything has changed."""

import math
import warnings

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, ENTRIES, ROWS, SETTINGS, assert_same, batch, entries, make_bank, run, snapshot
from cases import F64
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from kdkernels.methods import auxiliary


def criterion(**options):
    torch.manual_seed(0)
    return auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, **{"capacity": ENTRIES, **options})


def test_a_compiled_step_is_compiled_once():
    """A bank that fills changes two host numbers at every step; a graph that held them would be made anew each time."""
    backend, loss, alone = CompileCounter(), criterion(), criterion()
    student, teacher, h, ht = batch()
    index = torch.arange(ROWS)
    compiled = torch.compile(lambda z: 2 * loss(z * 1.5, teacher, h, ht, index), backend=backend)
    frames = []
    for _ in range(10):
        assert compiled(student) == 2 * alone(student * 1.5, teacher, h, ht, index)
        frames.append(backend.frame_count)
    assert 1 <= frames[1] == frames[-1] and len(loss.bank) == len(alone.bank)


def test_why_the_graph_breaks_is_said_once():
    from kdkernels.methods.auxiliary import graphs

    torch._dynamo.reset()
    graphs._tell.cache_clear()
    loss, (student, teacher, h, ht) = criterion(), batch()
    step = lambda z: 2 * loss(z * 1.5, teacher, h, ht, torch.arange(ROWS))  # noqa: E731
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for backend in ("eager", "aot_eager"):
            compiled = torch.compile(step, backend=backend)
            for _ in range(3):
                compiled(student)
    told = [str(each.message) for each in caught if "kdkernels" in str(each.message)]
    assert len(told) == 1 and "InstanceBank" in told[0]
    found = torch._dynamo.explain(step)(student)
    assert found.graph_break_count == 1 and "InstanceBank" in str(found.break_reasons[0].reason)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="InstanceBank"):
        torch.compile(step, backend="eager", fullgraph=True)(student)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["export", "strict export", "make_fx", "jit.trace"])
@pytest.mark.parametrize("training", [True, False])
def test_a_graph_for_ever_is_refused(how, training):
    """It would push every batch to the same place of the bank, and see the entries of its first call alone."""
    loss, given = criterion(), (*batch(), torch.arange(ROWS))
    loss(*given)
    loss.train(training)
    with pytest.raises(Exception, match="InstanceBank"):
        if how == "make_fx":
            make_fx(loss)(*given)
        elif how == "jit.trace":
            torch.jit.trace(loss, given)
        else:
            torch.export.export(loss, given, strict=how == "strict export")
    assert len(loss.bank) == ROWS


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_a_bad_row_of_the_teacher_does_not_outlive_its_batch(bad, where):
    bank, given = make_bank(entries(), capacity=ENTRIES + 4), [each[:2].clone() for each in entries(seed=70)]
    given[where][1, 0] = bad
    bank.push(*given)
    assert len(bank) == ENTRIES + 2
    assert not bank.features[ENTRIES + 1].any() and not bank.probs[ENTRIES + 1].any()
    assert torch.equal(bank.probs[ENTRIES], given[1][0]) and bank.features[ENTRIES].any()
    assert all(bool(each.isfinite().all()) for each in run(batch(), bank))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_an_empty_first_batch(reduction):
    loss = criterion()
    value = loss(*(each[:0] for each in batch()), torch.arange(0), reduction=reduction)
    assert value.shape == ((0,) if reduction == "none" else ()) and not value.any() and len(loss.bank) == 0


@pytest.mark.parametrize(("mixture", "beta"), [(0.0, 0.0), (0.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("which", range(4))
def test_one_float64_tensor_makes_float64(mixture, beta, which):
    given = [each.double() if i == which else each for i, each in enumerate(batch())]
    values = auxiliary.auxiliary_divergence(
        *given, make_bank(entries()), **(SETTINGS | {"mixture": mixture, "beta": beta})
    )
    assert values.dtype == F64


class Projects(nn.Module):
    """Counts its calls."""

    def __init__(self, to=lambda x: x):
        super().__init__()
        self.to, self.calls = to, 0

    def forward(self, x):
        self.calls += 1
        return self.to(x)


WRONG = {
    "an integer": (lambda x: x.long(), TypeError, "projection must return float32"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "projection must return a dense tensor"),
    "another device": (lambda x: x.to("meta"), ValueError, "projection must return .* on the bank's device"),
    "another shape": (lambda x: x[:, :-1], ValueError, "projection must return shape"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_projection_is_named(wrong):
    to, error, message = WRONG[wrong]
    loss = criterion(projection=Projects(to))
    with pytest.raises(error, match=message):
        loss(*batch(), torch.arange(ROWS))
    assert len(loss.bank) == 0


def test_the_projection_does_not_see_a_batch_that_is_refused():
    """Its batch statistics would."""
    loss = criterion(projection=Projects())
    student, teacher, h, ht = batch()
    for given in ((student, teacher[1:], h, ht), (student, teacher, h[1:], ht), (student, teacher, h, ht[1:])):
        with pytest.raises(ValueError, match="must have"):
            loss(*given, torch.arange(ROWS))
    assert loss.projection.calls == 0


@pytest.mark.parametrize("beta", [1e39, 10**400, math.inf, -1.0, math.nan])
def test_a_beta_beyond_float32_is_refused(beta):
    with pytest.raises(ValueError, match="beta must lie in"):
        criterion(beta=beta)


@pytest.mark.parametrize("extra", [None, 3, torch.tensor([1]), torch.tensor([1.0, 1.0]), torch.tensor([2, 1])])
def test_a_foreign_extra_state_is_refused_whole(extra):
    bank = make_bank(entries(), capacity=64)
    before, state = snapshot(bank), make_bank(entries(seed=70), capacity=64).state_dict()
    with pytest.raises(RuntimeError, match="state_dict must"):
        bank.load_state_dict({**state, "_extra_state": extra})
    assert_same(before, bank)


@pytest.mark.parametrize("missing", ["features", "probs", "index", "_extra_state"])
def test_half_a_state_is_not_loaded(missing):
    """Whoever asks for what is there (strict=False) does not want a queue of which a part is another's."""
    bank = make_bank(entries(), capacity=64)
    before, state = snapshot(bank), make_bank(entries(seed=70), capacity=64).state_dict()
    del state[missing]
    assert bank.load_state_dict(state, strict=False).missing_keys == [missing]
    assert_same(before, bank)
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict(state)
    assert_same(before, bank)
