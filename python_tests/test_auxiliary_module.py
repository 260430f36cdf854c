"""AuxiliaryKD: what enters the bank and when, in training and in evaluation, and its parameters."""

import math

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, SETTINGS, assert_same, batch, everything, snapshot
from cases import F32, F64, logits
from oracle_auxiliary import Bank, stored, unit
from oracle_auxiliary import auxiliary as oracle
from tgeo_students import EVERY_DEVICE
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import kdkernels as kd
from kdkernels.methods import auxiliary

HERE, THERE = 7, DIM  # dimensions of the student's features and of the teacher's


def make(capacity=64, device="cpu", dtype=F32, **options):
    torch.manual_seed(0)
    return auxiliary.AuxiliaryKD(HERE, THERE, CLASSES, capacity=capacity, **options).to(device, dtype)


def data(rows=9, device="cpu", dtype=F32, seed=0, first=0):
    """(student, teacher, student_features, teacher_features, index)"""
    student, teacher, _, features = batch(rows, device=device, dtype=dtype, seed=seed)
    own = logits(rows, HERE, device=device, dtype=dtype, seed=seed + 9)
    return student, teacher, own, features, torch.arange(first, first + rows, device=device)


def bank_of(module):
    (bank,) = (each for each in module.modules() if isinstance(each, auxiliary.InstanceBank))
    return bank


def projected(module, features):
    """The default projection: one matrix (teacher_dim, student_dim), and no bias."""
    (weight,) = module.parameters()
    assert weight.shape == (THERE, HERE)
    return features @ weight.detach().T


def wanted(module, given, bank, **settings):
    student, teacher, own, features, index = given
    answers, _ = oracle(student, teacher, projected(module, own), features, bank, index=index, **(SETTINGS | settings))
    return answers


@EVERY_DEVICE
@pytest.mark.parametrize("settings", [{}, {"mixture": 0.2, "kappa": 0.3, "beta": 2.0, "temperature": 1.0}], ids=str)
def test_training(device, settings):
    """The batch enters first, and own entries count for nobody: three batches, one of samples seen before."""
    module, held = make(device=device, dtype=F64, **settings), []
    for seed, first in ((0, 0), (20, 9), (40, 0)):
        given = data(device=device, dtype=F64, seed=seed, first=first)
        probs = (given[1] / settings.get("temperature", 4.0)).softmax(-1)
        held.append((unit(given[3]), probs.cpu(), given[4].cpu()))
        answers = wanted(module, given, Bank(*map(torch.cat, zip(*held, strict=True))), **settings)
        z = given[0].requires_grad_()
        value = module(*given, reduction="none")
        torch.testing.assert_close(value.cpu(), answers.student.values, rtol=1e-11, atol=1e-12)
        gradient, weight = torch.autograd.grad(value.sum(), (z, *module.parameters()))
        torch.testing.assert_close(gradient.cpu(), answers.student.gradient, rtol=1e-10, atol=1e-12)
        by_hand = answers.features.gradient.T @ given[2].cpu()
        torch.testing.assert_close(weight.cpu(), by_hand, rtol=1e-9, atol=1e-11)
    bank = stored(bank_of(module))
    assert len(bank.index) == 27 and bank.index.sort().values.tolist() == sorted([*range(18), *range(9)])
    torch.testing.assert_close(bank.probs.sum(-1), torch.ones(27, dtype=F64))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions(reduction):
    rows = make()(*data(), reduction="none")
    got = make()(*data(), reduction=reduction)
    assert rows.shape == (9,) and got.dtype == F32
    torch.testing.assert_close(got, {"none": rows, "sum": rows.sum(), "mean": rows.mean()}[reduction])
    if reduction == "mean":
        assert torch.equal(got, make()(*data()))


@EVERY_DEVICE
def test_evaluation(device):
    """Nothing enters; own entries are excluded where the samples are known, and there where they are not."""
    module = make(device=device)
    module(*data(device=device))
    module.eval()
    before, given = snapshot(module_state(module)), data(device=device, seed=60)
    for index in (given[4], None):
        value = module(*given[:4], index, reduction="none")
        answers = wanted(module, (*given[:4], index), stored(bank_of(module)))
        torch.testing.assert_close(value.detach().cpu().double(), answers.student.values, rtol=1e-5, atol=1e-5)
        assert_same(module_state(module), before)
    with torch.no_grad():
        assert not module(*given).requires_grad
    module.train()
    module(*given)
    assert len(bank_of(module)) == 18


def module_state(module):
    return bank_of(module)


def test_evaluation_of_an_empty_bank():
    module = make().eval()
    for index in (torch.arange(9), None):
        with pytest.raises(RuntimeError, match="(?i)bank.*empty|empty.*bank"):
            module(*data()[:4], index)
    assert len(bank_of(module)) == 0


def test_training_needs_the_samples():
    module = make()
    module(*data())
    before = snapshot(bank_of(module))
    with pytest.raises(ValueError, match="index must .*None"):
        module(*data(seed=3)[:4], None)
    assert_same(bank_of(module), before)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_first_batch(rows):
    """One row has no bank but itself, which does not count; of several, each has the others."""
    given = data(rows)
    value = make()(*given, reduction="none")
    if rows == 1:
        plain = kd.divergence(*given[:2], temperature=4.0, reduction="none")
        torch.testing.assert_close(value.detach(), plain + 16 * math.log(2), rtol=2e-6, atol=0)
        assert make(mixture=1.0)(*given).item() == math.inf
    module = make()
    bank = Bank(unit(given[3]), (given[1].double() / 4).softmax(-1), given[4])
    torch.testing.assert_close(
        value.detach().double(), wanted(module, given, bank).student.values, rtol=1e-5, atol=1e-5
    )


def test_a_batch_that_is_larger_than_the_bank():
    """The last rows of the batch are its bank, for its first rows too."""
    given, module = data(20), make(capacity=8)
    value = module(*given, reduction="none")
    assert sorted(bank_of(module).index.tolist()) == list(range(12, 20))
    answers = wanted(module, given, stored(bank_of(module)))
    torch.testing.assert_close(value.detach().double(), answers.student.values, rtol=1e-5, atol=1e-5)


def test_parameters():
    """Those of the projection, and of a custom one; the bank is state and no parameter."""
    module = make()
    assert [tuple(x.shape) for x in module.parameters()] == [(THERE, HERE)]
    assert all(x.requires_grad for x in module.parameters())
    custom = nn.Sequential(nn.Linear(HERE, 5), nn.Tanh(), nn.Linear(5, THERE))
    module, given = make(projection=custom), data()
    assert {id(x) for x in module.parameters()} == {id(x) for x in custom.parameters()}
    value = module(*given, reduction="none")
    bank, (student, teacher, own, features, index) = stored(bank_of(module)), given
    answers, _ = oracle(student, teacher, custom(own), features, bank, index=index, **SETTINGS)
    torch.testing.assert_close(value.detach().double(), answers.student.values, rtol=1e-5, atol=1e-5)
    value.sum().backward()
    assert all(bool(x.grad.any()) for x in (custom[0].weight, custom[0].bias, custom[2].weight))


def test_a_projection_without_parameters():
    module = auxiliary.AuxiliaryKD(THERE, THERE, CLASSES, capacity=64, projection=nn.Identity())
    student, teacher, _, features, index = data()
    own = logits(9, THERE, seed=8).requires_grad_()
    module(student, teacher, own, features, index).backward()
    assert not list(module.parameters()) and bool(own.grad.any())


def test_neither_the_teacher_nor_the_bank_gets_a_gradient():
    module, (student, teacher, own, features, index) = make(), data()
    own.requires_grad_()
    module(student, teacher, own, features, index).backward()
    assert bool(own.grad.any()) and not any(x.requires_grad for x in module.buffers())


def test_its_state_holds_the_bank():
    module, other = make(), make()
    module(*data())
    other.load_state_dict(module.state_dict())
    assert dict(everything(bank_of(other)))["length"] == 9
    assert_same(bank_of(other), bank_of(module))
    assert torch.equal(other(*data(seed=5)), module(*data(seed=5)))


def test_no_value_is_waited_for():
    """A tensor without values goes through a step as one with values does: nothing of it is looked at."""
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            torch.arange(3).sum().item()  # the measure itself
        module = auxiliary.AuxiliaryKD(HERE, THERE, CLASSES, capacity=12)
        for first in (0, 9):  # the second batch turns around in the bank
            student, *given = data(first=first)
            module(student.requires_grad_(), *given).backward()
            assert len(bank_of(module)) == min(first + 9, 12) and student.grad.shape == (9, CLASSES)
        assert bank_of(module).posterior(given[1].new_ones(9, THERE), 0.1, given[3]).shape == (9, CLASSES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has a host that waits for it")
def test_no_device_is_waited_for():
    module, batches = make(capacity=12, device="cuda"), [data(device="cuda", seed=seed) for seed in (0, 20, 40)]
    module(*batches[0]).backward()  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for given in batches[1:]:
            module(*given).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_defaults():
    """papers.md and the contract: 16384 entries, kappa 0.1, mixture 0.5, beta 1, T = 4."""
    module, explicit = auxiliary.AuxiliaryKD(HERE, THERE, CLASSES), make(capacity=16384, **SETTINGS)
    assert bank_of(module).index.shape == (16384,)
    module.load_state_dict(explicit.state_dict())
    assert torch.equal(module(*data()), explicit(*data()))
