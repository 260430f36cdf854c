"""The auxiliary-variable loss among what trainers put around it: checkpointing, hooks, inference mode, failed loads."""

import math

import pytest
import torch
from auxiliary_cases import CLASSES, DIM, ENTRIES, ROWS, SETTINGS, assert_same, batch, entries, make_bank, run, snapshot
from cases import F32, F64, name_of
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from kdkernels.methods import auxiliary

TERMS = pytest.mark.parametrize(("mixture", "beta"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0)])


def leaves():
    student, teacher, h, ht = batch()
    return student.requires_grad_(), teacher, h.requires_grad_(), ht


@TERMS
@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint(mixture, beta, reentrant):
    bank, (student, teacher, h, ht) = make_bank(entries()), leaves()
    settings = SETTINGS | {"mixture": mixture, "beta": beta}

    def loss(z, features):
        return auxiliary.auxiliary_divergence(z, teacher, features, ht, bank, **settings)

    checkpoint(loss, student, h, use_reentrant=reentrant).sum().backward()
    _, *wanted = run((student, teacher, h, ht), bank, **settings)
    for leaf, gradient in zip((student, h), wanted, strict=True):
        got = torch.zeros_like(gradient) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(got, gradient, rtol=1e-6, atol=1e-6)


@TERMS
def test_hooks_see_no_similarities(mixture, beta):
    """What offloads saved tensors moves the gradients, and neither the similarities nor the bank."""
    bank, given, seen = make_bank(entries()), leaves(), []

    def pack(tensor):
        seen.append(tuple(tensor.shape))
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = auxiliary.auxiliary_divergence(*given, bank, **(SETTINGS | {"mixture": mixture, "beta": beta}))
    _, *wanted = run(given, bank, mixture=mixture, beta=beta)
    got = torch.autograd.grad(value.sum(), given[::2], materialize_grads=True)
    for gradient, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
    assert set(seen) <= {(ROWS, CLASSES), (ROWS, DIM)}


@TERMS
def test_a_teacher_from_inference_mode(mixture, beta):
    criterion = auxiliary.AuxiliaryKD(DIM, DIM, CLASSES, capacity=ENTRIES, mixture=mixture, beta=beta)
    student, teacher, h, ht = leaves()
    with torch.inference_mode():
        teacher, ht = teacher * 1, ht * 1
    criterion(student, teacher, h, ht, torch.arange(ROWS)).backward()
    assert bool(student.grad.isfinite().all()) and len(criterion.bank) == ROWS


@pytest.mark.parametrize(("capacity", "held"), [(8, 5), (16, 9), (64, 5), (64, 0)])
def test_a_state_that_is_refused_leaves_no_entries_behind(capacity, held):
    """Entries that nobody pushed, rows of zeros, would enter every posterior."""
    source = make_bank(tuple(x[:6] for x in entries()), capacity=32)
    bank = auxiliary.InstanceBank(capacity, DIM, CLASSES)
    bank.push(*(x[:held] for x in entries(seed=70)))
    before = snapshot(bank)
    with pytest.raises((RuntimeError, ValueError)):
        bank.load_state_dict(source.state_dict())
    assert_same(before, bank)


def test_a_sparse_index_is_refused_before_anything_is_written():
    bank = make_bank(entries(), capacity=64)
    before = snapshot(bank)
    features, probs, index = (x[:2] for x in entries(seed=70))
    with pytest.raises(TypeError, match="index must be a dense tensor"):
        bank.push(features, probs, index.to_sparse())
    assert_same(before, bank)


@pytest.mark.parametrize("dtype", [F32, F64], ids=name_of)
@pytest.mark.parametrize("mixture", [0.5, 1.0])
@pytest.mark.parametrize(("temperature", "kappa"), [(0.1, 1e-3), (4.0, 0.1), (100.0, 1e-3), (100.0, 1e4)])
def test_an_infinite_value_has_a_finite_gradient(dtype, mixture, temperature, kappa):
    """The teacher's mass on a class that the student rules out and that no entry knows."""
    features, probs, index = entries(dtype=dtype)
    probs[:, 3] = 0.0
    student, *rest = batch(dtype=dtype)
    student[:, 3] = -math.inf
    settings = {"mixture": mixture, "temperature": temperature, "kappa": kappa}
    values, *gradients = run((student, *rest), make_bank((features, probs, index), dtype=dtype), **settings)
    assert bool((values == math.inf).all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
